//! The composition root: configuration in, running tasks out.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, lookup_host};
use tracing::{info, warn};

use crate::admin::{self, Facts};
use crate::api::{self, ApiConfig, Identity, Member, Members};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::migration::ending::{self, Quiet};
use crate::migration::fence;
use crate::migration::joining::refuse_emptying;
use crate::migration::later::Opener;
use crate::migration::ledger::Ledger;
use crate::migration::phase::{Phase, State};
use crate::migration::records::{Control, STATE};
use crate::migration::{Controller, OldLater, OpenError, Options, Router, Timing};
use crate::store::open::{self, Terms};
use crate::store::{Guard, NewStore, OldStore, Store, StoreError, StoreUrl};
use crate::tasks::Tasks;
use crate::types::Reserved;
use crate::types::hash::fnv1a;

/// How long requests and jobs that are under way may take when the server is shut down.
const GRACE: Duration = Duration::from_secs(10);

/// So many times as often as a member looks at its records, a proxy that serves a store alone looks whether it
/// still does: a copy of a few keys takes no longer than half a second.
const LOOKS: u32 = 2;

/// Why the server cannot start. Nothing was written to any store.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A store cannot be opened.
    #[error("the {which} store ({url}): {error}")]
    Store {
        /// `old` or `new`.
        which: &'static str,
        /// Where it is, without secrets.
        url: String,
        /// Why.
        error: StoreError,
    },
    /// An address cannot be listened on.
    #[error(
        "cannot listen on {address} for the {what}: {error}; choose another with --{flag} (port 0 \
         picks a free one)"
    )]
    Listen {
        /// For what.
        what: &'static str,
        /// The flag that changes it.
        flag: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The proxy would talk to itself.
    #[error(
        "--{which} names {host}, where this proxy itself is going to listen: it would be its own store. \
         Give the store's own address, or move the proxy with --listen"
    )]
    Itself {
        /// `old` or `new`.
        which: &'static str,
        /// As written.
        host: String,
    },
    /// The migration needs its old store.
    #[error(
        "the new store is in the {0} phase of a migration: name its old store with --old, or finish the \
         migration with `segue complete` first"
    )]
    OldMissing(Phase),
    /// The store that is to be served alone is the old one of a migration.
    #[error(
        "this is the old store of a migration: it is fenced, and its data has gone over to the new store. What was \
         written here now would be lost. To go on with the migration, name both stores, this one with --old; to go \
         back to this one, run `segue rollback` first. If the migration was completed, serve its new store instead"
    )]
    LeftBehind,
    /// The old store cannot be opened, and the new one tells of no migration that could do without it.
    #[error("{new}. And {old}")]
    NeitherStore {
        /// What is wrong with the new one.
        new: OpenError,
        /// What is wrong with the old one.
        old: Box<Self>,
    },
    /// The migration cannot be begun or joined.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// The stores to serve.
#[derive(Clone)]
pub struct Stores {
    /// Where the data comes from.
    pub old: Option<Arc<dyn OldStore>>,
    /// Where it goes.
    pub new: Arc<dyn NewStore>,
}

impl Stores {
    /// Ends all work on them; see [`NewStore::close`].
    pub async fn close(&self) {
        self.new.close().await;
        if let Some(old) = self.old.as_ref().and_then(|old| old.fenceable()) {
            old.close().await;
        }
    }

    /// Resolves when one of them can do nothing more in this process; see [`NewStore::astray`].
    pub async fn astray(&self) -> String {
        let of_old = async {
            match &self.old {
                Some(old) => old.astray().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            what = self.new.astray() => what,
            what = of_old => what,
        }
    }
}

/// A proxy that runs.
pub struct Server {
    /// Where it serves the etcd API.
    pub api: SocketAddr,
    /// Where it serves the admin API.
    pub admin: SocketAddr,
    /// The migration, unless the new store is served alone.
    pub controller: Option<Arc<Controller>>,
    tasks: Tasks,
    stores: Stores,
    /// What the new store holds while it is served alone.
    quiet: Quiet,
    /// Between two looks whether it still is.
    look: Duration,
    /// The stores are closed with the proxy: it has opened them itself.
    closes: bool,
}

impl Server {
    /// Opens the stores and starts to serve.
    pub async fn start(config: Config, timing: Timing) -> Result<Self, StartError> {
        for (which, url) in [("old", config.old.as_ref()), ("new", Some(&config.new))] {
            if let Some(url) = url {
                refuse_self(which, url, config.listen).await?;
            }
        }
        let stores = open(&config).await?;
        let started = Self::over(stores, config, timing).await?;
        Ok(Self {
            closes: true,
            ..started
        })
    }

    /// Starts to serve stores that are open already. The URLs in `config` are only shown.
    pub async fn over(stores: Stores, config: Config, timing: Timing) -> Result<Self, StartError> {
        let api_listener = bind("etcd API", "listen", config.listen).await?;
        let admin_listener = bind("admin API", "admin", config.admin).await?;
        let address =
            |listener: &TcpListener, asked: SocketAddr| listener.local_addr().unwrap_or(asked);
        let api = address(&api_listener, config.listen);
        let admin = address(&admin_listener, config.admin);
        let client_url = config.advertise.clone().unwrap_or_else(|| own_url(api));
        let name = config.name.clone().unwrap_or_else(|| client_url.clone());

        let tasks = Tasks::new();
        let identity = Identity {
            cluster_id: number(&stores.new.identity().await.map_err(of_new)?),
            member_id: number(&name),
        };
        let (old, quiet) = old_or_alone(&stores).await?;
        let controller = if let Some(old) = old {
            let options = Options {
                id: format!("{:016x}", rand::random::<u64>()),
                name: name.clone(),
                client_url: client_url.clone(),
                admin: admin.to_string(),
                reserved: Reserved::new(config.reserved_prefix.clone()),
                start: config.start,
                allow_nonempty: config.allow_nonempty,
                offline: false,
                mirror: config.mirror,
                replayed_bytes_max: config
                    .old
                    .as_ref()
                    .and_then(|url| open::replayed_bytes_max(url, config.limits.request_bytes)),
                parallel: config.parallel,
                control: Control {
                    paused: false,
                    rate_keys: config.rate_keys,
                    rate_bytes: config.rate_bytes,
                },
                auto_verify: config.auto_verify,
                follow: config.follow,
                timing,
            };
            Some(Controller::open(old, stores.new.clone(), options, tasks.clone()).await?)
        } else {
            None
        };
        let router: Arc<dyn Store> = match &controller {
            Some(controller) => controller.router(),
            None => Router::to(
                stores
                    .new
                    .guarded(guard_alone(&config.new, &stores.new).await?),
            ),
        };
        if let Some(controller) = &controller {
            tasks.spawn_vital("migration", Arc::clone(controller).run());
        }
        let metrics = Arc::new(Metrics::default());
        let own = Member {
            id: identity.member_id,
            name,
            client_urls: vec![client_url],
        };
        let members = Arc::new(Proxies {
            own,
            controller: controller.clone(),
        });
        let facts = Facts {
            listen: api.to_string(),
            admin: admin.to_string(),
            old: config.old.as_ref().map(ToString::to_string),
            new: config.new.to_string(),
            controller: controller.clone(),
            metrics: metrics.clone(),
            started: tokio::time::Instant::now(),
        };
        let shutdown = tasks.token().clone();
        tasks.spawn_vital(
            "admin API",
            admin::serve(admin_listener, facts, shutdown.clone()),
        );
        let mut api_config = ApiConfig::new(identity, members);
        api_config.limits = config.limits;
        let stop = async move { shutdown.cancelled().await };
        tasks.spawn_vital("etcd API", async move {
            if let Err(error) = api::serve(api_listener, api_config, router, metrics, stop).await {
                tracing::error!(%error, "the etcd API has stopped");
            }
        });
        Ok(Self {
            api,
            admin,
            controller,
            tasks,
            stores,
            quiet,
            look: timing.look / LOOKS,
            closes: false,
        })
    }

    /// Waits until clients are served.
    pub async fn ready(&self) {
        if let Some(controller) = &self.controller {
            controller.ready().await;
        }
    }

    /// Returns, with what to do, when this proxy can serve nobody any more; see [`crate::migration::ending`].
    pub async fn gone(&self) -> String {
        let gone = async {
            match &self.controller {
                Some(controller) => controller.gone().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = gone => ending::GONE.into(),
            () = self.not_alone() => ending::BEGUN.into(),
            what = self.tasks.astray() => ending::astray(&what),
            what = self.stores.astray() => ending::astray(&what),
        }
    }

    /// Returns when something begins in the store that this proxy serves alone, be it behind a migration.
    async fn not_alone(&self) {
        if let Some(controller) = &self.controller {
            controller.wait_until(|view| view.over).await;
        }
        self.quiet.ends(&self.stores.new, self.look).await;
    }

    /// The phase as this proxy knows it.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match &self.controller {
            Some(controller) => controller.view().state.value.phase,
            None => Phase::Settled,
        }
    }

    /// Lets requests finish, stops everything and answers what did not end in time.
    pub async fn stop(self) -> Vec<String> {
        info!("shutting down");
        let left = self.tasks.shut_down(GRACE).await;
        if self.closes {
            self.stores.close().await;
        }
        left
    }

    /// Ends everything at once, as if the process were killed: nothing is written any more.
    pub fn abort(self) {
        if let Some(controller) = &self.controller {
            controller.vanish();
        }
        self.tasks.cancel();
    }
}

/// Opens the stores that `config` names. The old one may be put off in the phases that do not need it.
pub async fn open(config: &Config) -> Result<Stores, StartError> {
    open_stores(config, true).await
}

/// Opens the stores that `config` names for a copy, which can do nothing without the old one.
pub async fn open_now(config: &Config) -> Result<Stores, StartError> {
    open_stores(config, false).await
}

async fn open_stores(config: &Config, may_be_later: bool) -> Result<Stores, StartError> {
    if let Some(old) = &config.old
        && same_place(old, &config.new)
    {
        return Err(OpenError::Same.into());
    }
    let terms = Terms {
        reserved: Reserved::new(config.reserved_prefix.clone()),
        allow_lossy: config.allow_lossy,
        // Fenced at the start of a migration, it ends no lease until it serves again.
        serves: config.mirror || config.start == Phase::Passthrough,
    };
    open::check_new(&config.new).map_err(of_new_at(&config.new))?;
    let old = match config.old.clone() {
        Some(url) => Some((url.clone(), open::open_old_on(&url, &terms).await)),
        None => None,
    };
    // A new store's file is not made for nothing.
    let made = matches!(&config.new, StoreUrl::Sqlite(path) if !path.exists());
    let old = match old {
        Some((url, Err(error))) if made || !may_be_later => return Err(of_old(&url, error)),
        old => old,
    };
    let new = open::open_new_on(&config.new, &terms).await;
    let new = new.map_err(of_new_at(&config.new))?;
    let old = match old {
        None => None,
        Some((_, Ok(store))) => Some(store),
        Some((url, Err(error))) => Some(old_later(url, error, &terms, &new).await?),
    };
    Ok(Stores { old, new })
}

/// The proxies of the fleet, for clients.
struct Proxies {
    own: Member,
    controller: Option<Arc<Controller>>,
}

impl Members for Proxies {
    fn members(&self) -> Vec<Member> {
        let mut members = vec![self.own.clone()];
        if let Some(controller) = &self.controller {
            let others = controller.members().into_iter().skip(1);
            members.extend(others.map(|(_, name, url)| Member {
                id: number(&name),
                name,
                client_urls: vec![url],
            }));
        }
        members
    }
}

fn of_new(error: StoreError) -> OpenError {
    OpenError::Store {
        which: "new",
        error,
    }
}

fn of_new_at(url: &StoreUrl) -> impl Fn(StoreError) -> StartError {
    move |error| StartError::Store {
        which: "new",
        url: url.to_string(),
        error,
    }
}

fn of_old(url: &StoreUrl, error: StoreError) -> StartError {
    StartError::Store {
        which: "old",
        url: url.to_string(),
        error,
    }
}

/// An old store that could not be opened now: no obstacle in the phases that do not need it.
async fn old_later(
    url: StoreUrl,
    error: StoreError,
    terms: &Terms,
    new: &Arc<dyn NewStore>,
) -> Result<Arc<dyn OldStore>, StartError> {
    let state = Ledger::new(new.clone()).get::<State>(STATE).await;
    let state = state.map_err(of_new)?;
    if state.is_none() && !new.is_empty().await.map_err(of_new)? {
        // Whoever has completed a migration has turned the old store off.
        return Err(StartError::NeitherStore {
            new: OpenError::NotEmpty,
            old: Box::new(of_old(&url, error)),
        });
    }
    let Some(state) =
        state.filter(|entry| matches!(entry.value.phase, Phase::Normal | Phase::Settled))
    else {
        return Err(of_old(&url, error));
    };
    warn!(%error, phase = %state.value.phase, "the old store cannot be reached; it is not needed now");
    let terms = terms.clone();
    let opener: Opener = Box::new(move || {
        let (url, terms) = (url.clone(), terms.clone());
        Box::pin(async move { open::open_old_on(&url, &terms).await })
    });
    Ok(Arc::new(OldLater::new(opener, Some(state.value.old))))
}

/// What the store is asked under that is served alone. An etcd under nothing: it reads by a transaction where it is
/// asked for a fence as well.
async fn guard_alone(url: &StoreUrl, new: &Arc<dyn NewStore>) -> Result<Guard, StartError> {
    if matches!(url, StoreUrl::Etcd(_)) {
        return Ok(Guard::None);
    }
    let guard = fence::guard_alone(new).await;
    guard.map_err(|error| of_new(error).into())
}

/// The old store that there is a migration from, if there is one; and what the new store holds while it is
/// served alone, which it may be later.
async fn old_or_alone(stores: &Stores) -> Result<(Option<Arc<dyn OldStore>>, Quiet), StartError> {
    if let Some(old) = stores.old.clone() {
        return Ok((Some(old), Quiet::after_migration()));
    }
    // Before the store is looked at, so that nothing begins in between.
    let quiet = Quiet::now(&stores.new).await.map_err(of_new)?;
    Ok(match old_of_settled(&stores.new).await? {
        Some(old) => (Some(old), Quiet::after_migration()),
        None => (None, quiet),
    })
}

/// For a new store that is named without its old one: nothing, if it holds no migration. What is left of
/// one that is settled, somebody has to bring to its end, which takes no old store. Any other is refused.
async fn old_of_settled(new: &Arc<dyn NewStore>) -> Result<Option<Arc<dyn OldStore>>, StartError> {
    refuse_emptying(new).await?;
    let state = Ledger::new(new.clone()).get::<State>(STATE).await;
    let state = state.map_err(of_new)?.map(|entry| entry.value);
    // The record of one that has come to its end may stay in what is the old store of the next.
    if state.as_ref().is_none_or(|state| state.closed)
        && fence::is_left_behind(new).await.map_err(of_new)?
    {
        return Err(StartError::LeftBehind);
    }
    match state {
        None => Ok(None),
        Some(state) if state.phase == Phase::Settled => {
            let unnamed = || Err(StoreError::Broken("no old store is named".into()));
            let opener: Opener = Box::new(move || Box::pin(std::future::ready(unnamed())));
            Ok(Some(Arc::new(OldLater::new(opener, Some(state.old)))))
        }
        Some(state) if state.offline => Err(OpenError::Offline.into()),
        Some(state) => Err(StartError::OldMissing(state.phase)),
    }
}

/// Whether two URLs are seen to be one store without asking it. What is not seen here, the stores'
/// identities tell.
fn same_place(old: &StoreUrl, new: &StoreUrl) -> bool {
    match (old, new) {
        // Each is a store of its own.
        (StoreUrl::Memory, StoreUrl::Memory) => false,
        (StoreUrl::Sqlite(old), StoreUrl::Sqlite(new)) => {
            let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
            real(old) == real(new)
        }
        (StoreUrl::Postgres(old), StoreUrl::Postgres(new))
        | (StoreUrl::Mysql(old), StoreUrl::Mysql(new)) => old.is_same_place(new),
        (old, new) => old == new,
    }
}

/// Refuses a store whose address is the one that we are going to listen on.
async fn refuse_self(
    which: &'static str,
    url: &StoreUrl,
    listen: SocketAddr,
) -> Result<(), StartError> {
    let (StoreUrl::Etcd(cluster) | StoreUrl::Etcd2(cluster)) = url else {
        return Ok(());
    };
    for host in &cluster.hosts {
        // A name that does not resolve is the store's own error, and comes later.
        let Ok(addresses) = lookup_host(host).await else {
            continue;
        };
        for address in addresses {
            if address.port() == listen.port() && listens_at(listen.ip(), address.ip()) {
                return Err(StartError::Itself {
                    which,
                    host: host.clone(),
                });
            }
        }
    }
    Ok(())
}

/// Whether who listens on `listen` is reached at `ip`.
fn listens_at(listen: IpAddr, ip: IpAddr) -> bool {
    // Only addresses of this machine can be bound.
    listen == ip || (listen.is_unspecified() && std::net::UdpSocket::bind((ip, 0)).is_ok())
}

async fn bind(
    what: &'static str,
    flag: &'static str,
    address: SocketAddr,
) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| StartError::Listen {
            what,
            flag,
            address,
            error,
        })
}

/// What clients are told where nobody has said how they reach what listens on `api`.
fn own_url(api: SocketAddr) -> String {
    let url = format!("http://{}", reachable(api));
    if api.ip().is_unspecified() {
        warn!(
            listen = %api,
            "clients that sync their endpoints are told {url}, which is this machine alone: say with \
             --advertise where others reach this proxy"
        );
    }
    url
}

/// An address to call for one to listen on.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => ([127, 0, 0, 1], address.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => {
            (std::net::Ipv6Addr::LOCALHOST, address.port()).into()
        }
        _ => address,
    }
}

/// A number for a name, the same wherever and whenever it is asked for, and never 0.
fn number(name: &str) -> u64 {
    fnv1a(name.as_bytes()).max(1)
}
