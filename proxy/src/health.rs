//! Whether the daemon does its work, served at `/healthz` and `/livez`.
//!
//! Healthy means: the last successful sync is recent, or nothing waits to be synced. A daemon that has lost its source is
//! healthy, for the kernel has all that it knows; one whose syncs fail is not.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use jiff::Timestamp;
use serde::Serialize;
use tokio::net::TcpListener;

use crate::metrics::{Metrics, Question};

/// What is known of the daemon's health. Shared by reference.
#[derive(Debug)]
pub struct Health {
    timeout: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last_updated: Option<Timestamp>,
    /// Since when something waits to be synced.
    pending_since: Option<Instant>,
    node_is_being_deleted: bool,
}

/// The body of an answer; the fields are those of kube-proxy.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    /// When a sync last succeeded; now, while nothing waits.
    last_updated: Option<Timestamp>,
    current_time: Timestamp,
    /// Whether a load balancer should use this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
}

/// Why a listener of the daemon's own could not be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot serve {what} on {address}; is another proxy running on this node? (--{what}-bind-address picks another address)"
)]
pub struct ServeError {
    what: &'static str,
    address: SocketAddr,
    #[source]
    cause: std::io::Error,
}

impl Health {
    /// Healthy until something has waited longer than `timeout` to be synced.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, state: Mutex::default() }
    }

    /// Something new waits to be synced.
    pub fn queued(&self) {
        self.lock().pending_since.get_or_insert_with(Instant::now);
    }

    /// A sync succeeded; `more` if something newer waits already.
    pub fn synced(&self, more: bool) {
        let mut state = self.lock();
        state.last_updated = Some(Timestamp::now());
        state.pending_since = more.then(Instant::now);
    }

    /// Whether this node is about to go, and load balancers should leave it.
    pub fn set_node_is_being_deleted(&self, is_being_deleted: bool) {
        self.lock().node_is_being_deleted = is_being_deleted;
    }

    /// Whether the daemon does its work, the question of `/livez`: whether this node is about to go does not matter.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        !self.lock().is_stuck(self.timeout)
    }

    fn answer(&self, question: Question) -> (StatusCode, Body) {
        let state = self.lock();
        let is_stuck = state.is_stuck(self.timeout);
        let is_eligible = !state.node_is_being_deleted;
        let is_ok = !is_stuck && (question == Question::Livez || is_eligible);
        let now = Timestamp::now();
        let body = Body {
            last_updated: if state.pending_since.is_none() { Some(now) } else { state.last_updated },
            current_time: now,
            node_eligible: (question == Question::Healthz).then_some(is_eligible),
        };
        (if is_ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // The state is plain values, whole after every statement: a panic elsewhere can't have left it half-written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_stuck(&self, timeout: Duration) -> bool {
        self.pending_since.is_some_and(|since| since.elapsed() > timeout)
    }
}

/// Serves `/healthz` and `/livez` until the process ends.
///
/// # Errors
/// When the address can't be listened on.
pub async fn serve(address: SocketAddr, health: Arc<Health>, metrics: Arc<Metrics>) -> Result<(), ServeError> {
    let route = |question| {
        let (health, metrics) = (health.clone(), metrics.clone());
        get(move || {
            let (code, body) = health.answer(question);
            metrics.answered(question, code.as_u16());
            async move { (code, Json(body)) }
        })
    };
    let router = Router::new().route("/healthz", route(Question::Healthz)).route("/livez", route(Question::Livez));
    listen("healthz", address, router).await
}

/// Opens a listener of the daemon's own, named by its flag, and serves it in the background.
pub(crate) async fn listen(what: &'static str, address: SocketAddr, router: Router) -> Result<(), ServeError> {
    let listener = TcpListener::bind(address).await.map_err(|cause| ServeError { what, address, cause })?;
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(what, %address, %error, "no longer served");
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(health: &Health) -> (u16, u16) {
        (health.answer(Question::Healthz).0.as_u16(), health.answer(Question::Livez).0.as_u16())
    }

    #[test]
    fn healthy_while_nothing_waits() {
        let health = Health::new(Duration::ZERO);
        assert_eq!(codes(&health), (200, 200));
        health.queued();
        assert_eq!(codes(&health), (503, 503));
        health.synced(false);
        assert_eq!(codes(&health), (200, 200));
    }

    #[test]
    fn healthy_while_what_waits_has_not_waited_long() {
        let health = Health::new(Duration::from_hours(1));
        health.queued();
        assert_eq!(codes(&health), (200, 200));
    }

    #[test]
    fn a_node_that_is_being_deleted_is_live_but_not_healthy() {
        let health = Health::new(Duration::from_hours(1));
        health.set_node_is_being_deleted(true);
        assert_eq!(codes(&health), (503, 200));
    }

    #[test]
    fn something_newer_keeps_waiting_after_a_sync() {
        let health = Health::new(Duration::ZERO);
        health.queued();
        health.synced(true);
        assert_eq!(codes(&health), (503, 503));
    }
}
