//! Serves the metadata protocol on the connections that the acceptor identifies.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::connection::{Connections, Phase, reached};
use crate::credentials::Issuer;
use crate::identify::{Acceptor, Identified};

/// Accepts and serves connections.
#[derive(Debug)]
pub struct Server<I> {
    acceptor: Arc<Acceptor>,
    connections: Arc<Connections<I>>,
    phase: watch::Receiver<Phase>,
}

impl<I: Issuer> Server<I> {
    /// Makes a server that has no listeners yet.
    pub fn new(acceptor: Acceptor, connections: Connections<I>, phase: watch::Receiver<Phase>) -> Self {
        Self {
            acceptor: Arc::new(acceptor),
            connections: Arc::new(connections),
            phase,
        }
    }

    /// Returns the acceptor, which accepts and identifies connections.
    pub fn acceptor(&self) -> &Acceptor {
        &self.acceptor
    }

    /// Returns the server of accepted connections.
    pub fn connections(&self) -> &Connections<I> {
        &self.connections
    }

    /// Accepts and serves connections until the phase is [`Phase::Closing`] or the listener is `closed`.
    pub async fn accept(self: Arc<Self>, listener: TcpListener, closed: CancellationToken) {
        let mut phase = self.phase.clone();
        let stop = async {
            tokio::select! {
                () = reached(&mut phase, Phase::Closing) => {}
                () = closed.cancelled() => {}
            }
        };
        let connections = Arc::clone(&self.connections);
        let serve = move |identified| {
            let connections = Arc::clone(&connections);
            async move { serve(&connections, identified).await }
        };
        Arc::clone(&self.acceptor).accept(listener, stop, serve).await;
    }
}

async fn serve<I: Issuer>(connections: &Connections<I>, mut connection: Identified) {
    let Identified {
        stream,
        peer,
        client,
        permit,
        ..
    } = &mut connection;
    if let Err(error) = connections.serve(stream, client, permit).await {
        debug!(%peer, pod = %client.uid, "connection ended: {error}");
    }
}
