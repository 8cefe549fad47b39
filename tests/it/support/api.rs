//! Segue's API in this process, over any store, on a free port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use segue::api::{self, ApiConfig, Identity, Member};
use segue::metrics::Metrics;
use segue::store::Store;
use segue::tasks::spawn_owned;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A running API. Stopped when dropped, without waiting.
pub struct Api {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<std::io::Result<()>>,
}

impl Api {
    /// Serves `store` with etcd's settings.
    pub async fn start(store: Arc<dyn Store>) -> Self {
        Self::start_with(store, |_| {}).await
    }

    /// Serves `store` with settings of its own.
    pub async fn start_with(store: Arc<dyn Store>, adapt: impl FnOnce(&mut ApiConfig)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let identity = Identity {
            cluster_id: 0x5e9e,
            member_id: 0x1,
        };
        let member = Member {
            id: identity.member_id,
            name: "segue-1".into(),
            client_urls: vec![format!("http://{address}")],
        };
        let mut config = ApiConfig::new(identity, Arc::new(vec![member]));
        config.shutdown_grace = Duration::from_secs(2);
        adapt(&mut config);
        let (stop, stopped) = oneshot::channel();
        let served = spawn_owned(api::serve(
            listener,
            config,
            store,
            Arc::new(Metrics::default()),
            async {
                let _ = stopped.await;
            },
        ));
        Self {
            address,
            stop: Some(stop),
            served,
        }
    }

    /// Host and port.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// For clients.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Shuts down and waits for the end.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        (&mut self.served).await.unwrap().unwrap();
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.served.abort();
    }
}
