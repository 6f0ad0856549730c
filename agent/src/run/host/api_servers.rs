// SPDX-License-Identifier: Apache-2.0
//! Where this node asks its API server: no Service takes these addresses from the host's sockets, or the node would not learn that the
//! Service has gone.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    net::lookup_host,
    sync::watch,
    time::{sleep, timeout},
};

use crate::watch::{Source, kubernetes};

/// How long a start waits for the addresses of a name.
const PATIENCE: Duration = Duration::from_secs(2);
/// A name is looked up again after this long.
const AGAIN: Duration = Duration::from_secs(30);
/// Of a name that has more addresses in turn some older ones do not count any more.
const MOST: usize = 64;

/// What is known of them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Known {
    /// None: not yet.
    addresses: Option<BTreeSet<IpAddr>>,
    /// Why not.
    problem: Option<String>,
}

/// See the module.
#[derive(Debug)]
pub(in crate::run) struct ApiServers(watch::Receiver<Known>);

impl ApiServers {
    /// Looks them up, and goes on to where they have a name. Must be called within a tokio runtime.
    pub(in crate::run) async fn start(source: Source) -> Self {
        let Source::Kubernetes(server) = source else {
            let nobody = Known { addresses: Some(BTreeSet::new()), problem: None };
            return Self(watch::channel(nobody).1);
        };
        let unknown = Known { addresses: None, problem: Some("they are being looked up".to_owned()) };
        let (sender, mut receiver) = watch::channel(unknown);
        tokio::spawn(async move {
            loop {
                let host = kubernetes::host(&server).await;
                // Nothing else is to be found out of an address.
                let is_address = host.as_ref().is_ok_and(|host| host.parse::<IpAddr>().is_ok());
                let found = look_up(host).await;
                sender.send_if_modified(|known| known.follow(found));
                if is_address || sender.is_closed() {
                    return;
                }
                sleep(AGAIN).await;
            }
        });
        // Later is soon enough.
        drop(timeout(PATIENCE, receiver.changed()).await);
        Self(receiver)
    }

    /// None: nobody knows yet.
    pub(in crate::run) fn addresses(&self) -> Option<Vec<IpAddr>> {
        self.0.borrow().addresses.as_ref().map(|addresses| addresses.iter().copied().collect())
    }

    /// Why they are not known.
    pub(in crate::run) fn problem(&self) -> Option<String> {
        let known = self.0.borrow();
        let why = known.problem.as_ref().filter(|_| known.addresses.is_none())?;
        Some(format!(
            "external addresses of Services are not served for processes of the node until the API server's own addresses are known: {why}"
        ))
    }
}

/// The addresses that a name stands for now, or the address that it is.
async fn look_up(host: Result<String>) -> Result<BTreeSet<IpAddr>> {
    let host = host?;
    let found = lookup_host((&*host, 0)).await.with_context(|| format!("look up '{host}'"))?;
    Ok(found.map(|address| address.ip()).collect())
}

impl Known {
    /// Adds what a look-up found; whether anything is new. An address that is not found any more may still be asked.
    fn follow(&mut self, found: Result<BTreeSet<IpAddr>>) -> bool {
        let before = self.clone();
        match found {
            Ok(found) => {
                let all: BTreeSet<IpAddr> = self.addresses.iter().flatten().chain(&found).copied().collect();
                let older = all.difference(&found).take(MOST.saturating_sub(found.len()));
                *self = Self { addresses: Some(older.chain(&found).copied().collect()), problem: None };
            }
            Err(error) => self.problem = Some(format!("{error:#}")),
        }
        *self != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(range: std::ops::Range<u8>) -> BTreeSet<IpAddr> {
        range.map(|last| IpAddr::from([192, 0, 2, last])).collect()
    }

    #[test]
    fn addresses_stay_and_a_failure_takes_none_away() {
        let mut known = Known::default();
        assert!(known.follow(Err(anyhow::anyhow!("no such name"))));
        assert_eq!((known.addresses.as_ref(), known.problem.as_deref()), (None, Some("no such name")));
        assert!(known.follow(Ok(addresses(0..1))));
        assert!(known.follow(Ok(addresses(1..2))));
        assert!(!known.follow(Ok(addresses(1..2))));
        assert!(known.follow(Err(anyhow::anyhow!("no such name"))));
        assert_eq!(known.addresses, Some(addresses(0..2)));
        assert!(known.follow(Ok(addresses(100..200))));
        assert_eq!(known.addresses, Some(addresses(100..200)), "not without bound");
        known.follow(Ok(addresses(0..1)));
        assert_eq!(known.addresses.map(|all| all.len()), Some(MOST));
    }

    #[tokio::test]
    async fn an_address_is_known_at_once_and_a_folder_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        let text = "{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: 'https://[2001:db8::1]:6443'}}], \
                    users: [{name: u, user: {token: t}}], contexts: [{name: c, context: {cluster: c, user: u}}]}";
        std::fs::write(&path, text).unwrap();
        let server = crate::watch::ApiServer { server: None, kubeconfig: Some(path) };
        let known = ApiServers::start(Source::Kubernetes(server)).await;
        assert_eq!(known.addresses(), Some(vec!["2001:db8::1".parse().unwrap()]));
        assert_eq!(ApiServers::start(Source::Dir("/nowhere".into())).await.addresses(), Some(vec![]));
        // A file that is not there yet.
        let server = crate::watch::ApiServer { server: None, kubeconfig: Some(dir.path().join("later")) };
        let unknown = ApiServers::start(Source::Kubernetes(server)).await;
        assert_eq!(unknown.addresses(), None);
        assert!(unknown.problem().unwrap().contains("kubeconfig"), "{:?}", unknown.problem());
    }
}
