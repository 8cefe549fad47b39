//! Proxies, stores and the ways between them, and what they suffer.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{LocalBoxFuture, join_all};
use tokio::time::sleep;

use super::plan::{Blow, Fault, PROXIES, Party, Plan};
use super::server::Server;
use crate::support::link::{Link, Traffic};
use crate::support::wait::DEADLINE;
use crate::support::{Segue, eventually};

/// Everybody who takes part, but for the clients.
pub(super) struct Parties {
    old: Server,
    new: Server,
    pub(super) proxies: Vec<Segue>,
    client_links: Vec<Link>,
    old_links: Vec<Link>,
    new_links: Vec<Link>,
}

impl Parties {
    /// Starts them, the proxies in the passthrough phase.
    pub(super) async fn start(plan: &Plan) -> Self {
        let (old, new) = tokio::join!(Server::start(plan.old), Server::start(plan.new));
        let mut parties = Self {
            old,
            new,
            proxies: Vec::new(),
            client_links: Vec::new(),
            old_links: Vec::new(),
            new_links: Vec::new(),
        };
        for _ in 0..PROXIES {
            let (old, new) = (&parties.old.url, &parties.new.url);
            let (old_link, new_link) = (Link::to(old).await, Link::to(new).await);
            let (old, new) = (old_link.url(old), new_link.url(new));
            let rate = plan.rate.to_string();
            let args = ["--old", &old, "--new", &new, "--rate-keys", &rate];
            let proxy = Segue::start(args.into_iter().chain(["--start", "passthrough"])).await;
            parties.client_links.push(Link::to(&proxy.endpoint()).await);
            parties.proxies.push(proxy);
            parties.old_links.push(old_link);
            parties.new_links.push(new_link);
        }
        parties
    }

    /// Where clients find the proxies.
    pub(super) fn endpoints(&self) -> Vec<String> {
        let ways = self.client_links.iter().zip(&self.proxies);
        ways.map(|(link, proxy)| link.url(&proxy.endpoint()))
            .collect()
    }

    /// Where the operator finds them.
    pub(super) fn admins(&self) -> Vec<String> {
        self.proxies.iter().map(Segue::admin).collect()
    }

    /// Goes through all that the plan has for them. In the end everybody is well again.
    pub(super) async fn suffer(&mut self, plan: &Plan) {
        let blows = |of: Party| {
            let of_party = plan.blows.iter().find(|(party, _)| *party == of);
            of_party.map_or(&[][..], |(_, blows)| blows)
        };
        let mut all: Vec<LocalBoxFuture<'_, ()>> = vec![
            strike_server(&mut self.old, blows(Party::OldStore)).boxed_local(),
            strike_server(&mut self.new, blows(Party::NewStore)).boxed_local(),
        ];
        for (number, proxy) in self.proxies.iter_mut().enumerate() {
            all.push(strike_proxy(proxy, blows(Party::Proxy(number))).boxed_local());
        }
        for number in 0..PROXIES {
            let links = [
                (&self.client_links, Party::ClientLink(number)),
                (&self.old_links, Party::OldLink(number)),
                (&self.new_links, Party::NewLink(number)),
            ];
            for (links, party) in links {
                all.push(strike_link(&links[number], blows(party)).boxed_local());
            }
        }
        join_all(all).await;
    }

    /// What each proxy has said last.
    pub(super) fn last_words(&self) -> Vec<String> {
        let said = self.proxies.iter().map(|proxy| end_of(&proxy.output()));
        said.collect()
    }

    /// Panics if a proxy has ended by itself or panicked.
    pub(super) fn assert_well(&mut self) {
        for proxy in &mut self.proxies {
            assert_runs(proxy);
            let said = proxy.output();
            let panicked = said.lines().find(|line| line.contains("panicked at"));
            assert_eq!(panicked, None, "{}", end_of(&said));
        }
    }
}

fn assert_runs(proxy: &mut Segue) {
    let ended = proxy.ended();
    assert_eq!(ended, None, "by itself: {}", end_of(&proxy.output()));
}

/// What was said last.
pub(super) fn end_of(said: &str) -> String {
    let lines: Vec<_> = said.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

async fn strike_server(server: &mut Server, blows: &[Blow]) {
    for blow in blows {
        sleep(blow.after).await;
        server.kill();
        sleep(blow.lasts).await;
        server.restart().await;
    }
}

async fn strike_proxy(proxy: &mut Segue, blows: &[Blow]) {
    for blow in blows {
        sleep(blow.after).await;
        assert_runs(proxy);
        if blow.fault == Fault::Stop {
            proxy.process().pause();
            sleep(blow.lasts).await;
            proxy.process().resume();
            continue;
        }
        proxy.kill();
        sleep(blow.lasts).await;
        // It ends by itself if its stores are away when it starts: whoever runs it starts it again.
        let starting = eventually("a proxy starts", async || proxy.try_restart().await);
        tokio::time::timeout(DEADLINE + Duration::from_secs(1), starting)
            .await
            .expect("it starts or ends");
    }
}

async fn strike_link(link: &Link, blows: &[Blow]) {
    for blow in blows {
        sleep(blow.after).await;
        match blow.fault {
            Fault::Slow(time) => link.set(Traffic::Slow(time)),
            Fault::Stand => link.set(Traffic::Stands),
            Fault::Close => {
                link.set(Traffic::Closed);
                link.cut();
            }
            Fault::Cut | Fault::Kill | Fault::Stop => link.cut(),
        }
        sleep(blow.lasts).await;
        link.open();
    }
}
