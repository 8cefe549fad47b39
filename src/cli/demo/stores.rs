//! The stores of a show: in a temporary directory unless others were named, the old one filled.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::screen::Screen;
use super::seed::{Survey, seed};
use super::stage::Address;
use super::{Demo, RELEASE};
use crate::cli::Failure;
use crate::config::{Config, Settings};
use crate::store::{Guard, NewStore, OldStore, StoreError, StoreUrl, open};
use crate::types::Reserved;

/// What is known about the stores before the clients begin.
pub(super) struct Stores {
    /// How Segue is to be started.
    pub config: Config,
    /// What the old store holds.
    pub survey: Survey,
    /// The demo has filled the old store itself, so that it may write to it.
    pub own: bool,
}

/// How the clients reach the old store alone.
pub(super) enum Before {
    /// Through a Segue that does nothing but serve it.
    Served,
    /// By themselves.
    Direct(Address),
    /// Not at all, for this reason.
    Nothing(&'static str),
}

impl Before {
    /// For people.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Served => "the old store alone, served by a segue without a migration".into(),
            Self::Direct(_) => "the old store alone, which the clients talk to directly".into(),
            Self::Nothing(why) => format!("not measured, since {why}"),
        }
    }
}

impl Stores {
    /// Checks the stores and fills the old one if it is empty. Nothing is written unless the new
    /// one is good.
    pub(super) async fn prepare(demo: &Demo, dir: &Path, screen: &Screen) -> Result<Self, Failure> {
        let config = config(demo, dir)?;
        let reserved = Reserved::new(config.reserved_prefix.clone());
        let Some(old) = config.old.clone() else {
            return Err(Failure::Usage("the old store is missing".into()));
        };
        if old == StoreUrl::Memory {
            return Err(Failure::Usage(
                "--old memory: would be empty whenever it is opened; leave --old out for a store \
                 in a temporary file"
                    .into(),
            ));
        }
        if old == config.new {
            let why = format!("--old and --new are the same store, {old}");
            return Err(Failure::Usage(why));
        }
        if config.new != StoreUrl::Memory {
            let new = open_new("new", &config.new, &reserved).await?;
            let empty = new.is_empty().await;
            if !empty.map_err(|error| failed("new", &config.new, &error))? {
                let why = format!(
                    "the new store, {}, is not empty; give an empty one",
                    config.new
                );
                return Err(Failure::Usage(why));
            }
        }
        if let StoreUrl::Sqlite(path) = &old
            && !path.exists()
        {
            open_new("old", &old, &reserved).await?;
        }
        screen.begin("old store");
        let survey = survey(&old, &reserved).await?;
        let own = survey.keys.is_empty();
        if !own {
            return Ok(Self {
                // Somebody's data is read and never written to.
                config: Config {
                    mirror: false,
                    ..config
                },
                survey,
                own,
            });
        }
        if matches!(old, StoreUrl::Etcd2(_)) {
            return Err(Failure::Usage(format!(
                "the old store, {old}, is empty, and the demo cannot fill it: put some keys into \
                 it, for example with `ETCDCTL_API=2 etcdctl set /config/a 1`"
            )));
        }
        let store = open_new("old", &old, &reserved).await?;
        let progress = |done: usize, all: usize| {
            if done.is_multiple_of(64) {
                screen.progress(done as u64, Some(all as u64), "an application's data");
            }
        };
        seed(store.guarded(Guard::None), demo.keys, &progress)
            .await
            .map_err(|error| Failure::Failed(format!("{error:#}")))?;
        drop(store);
        let survey = self::survey(&old, &reserved).await?;
        Ok(Self {
            config,
            survey,
            own,
        })
    }

    /// How the old store can be used alone.
    pub(super) fn before(&self) -> Before {
        match &self.config.old {
            _ if !self.own => Before::Nothing("no client may write to an old store with data"),
            Some(StoreUrl::Etcd(cluster)) => {
                let hosts = cluster.hosts.iter();
                let account = cluster.account.as_ref().map(|account| {
                    let password = account.password.as_ref();
                    let password = password.map_or("", |password| password.expose());
                    (account.user.clone(), password.to_owned())
                });
                Before::Direct(Address {
                    endpoints: hosts.map(|host| format!("http://{host}")).collect(),
                    account,
                })
            }
            Some(StoreUrl::Etcd2(_)) => {
                Before::Nothing("etcd's v3 clients cannot talk to its v2 API")
            }
            _ => Before::Served,
        }
    }

    /// Whether clients see the same revisions when the migration is settled. etcd shows its own
    /// then.
    pub(super) fn keeps_revisions(&self) -> bool {
        !matches!(self.config.new, StoreUrl::Etcd(_))
    }
}

/// The settings of the proxy, from the command's flags; passwords as `segue serve` takes them.
fn config(demo: &Demo, dir: &Path) -> Result<Config, Failure> {
    let inside = |name: &str| format!("sqlite:{}", dir.join(name).display());
    let given = |url: &Option<String>, name: &str| url.clone().unwrap_or_else(|| inside(name));
    let settings = Settings {
        old: Some(given(&demo.old, "old.db")),
        new: Some(given(&demo.new, "new.db")),
        old_password_file: demo.old_password_file.clone(),
        new_password_file: demo.new_password_file.clone(),
        listen: Some("127.0.0.1:0".into()),
        admin: Some("127.0.0.1:0".into()),
        name: Some("demo".into()),
        ..Settings::default()
    };
    let config = settings.complete();
    config.map_err(|error| Failure::Usage(error.to_string()))
}

fn failed(which: &str, url: &StoreUrl, error: &StoreError) -> Failure {
    Failure::Failed(format!("the {which} store ({url}): {error}"))
}

async fn open_new(
    which: &str,
    url: &StoreUrl,
    reserved: &Reserved,
) -> Result<Arc<dyn NewStore>, Failure> {
    let opened = patiently(url, async || open::open_new(url, reserved).await).await;
    opened.map_err(|error| failed(which, url, &error))
}

async fn survey(url: &StoreUrl, reserved: &Reserved) -> Result<Survey, Failure> {
    let opened = patiently(url, async || open::open_old(url, reserved).await).await;
    let old: Arc<dyn OldStore> = opened.map_err(|error| failed("old", url, &error))?;
    let survey = Survey::of(&*old).await;
    survey.map_err(|error| Failure::Failed(format!("the old store ({url}): {error:#}")))
}

/// Tries again for a while if a file is still being closed.
async fn patiently<T>(
    url: &StoreUrl,
    open: impl AsyncFn() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let deadline = Instant::now() + RELEASE;
    loop {
        match open().await {
            Err(StoreError::Unavailable(_))
                if matches!(url, StoreUrl::Sqlite(_)) && Instant::now() < deadline =>
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            opened => return opened,
        }
    }
}
