//! The services that tools expect of any gRPC server: health, for probes and load balancers, and reflection, for whoever
//! wants to know the contract without having it.

use tokio::sync::watch;
use tollgate_api::v1::control_plane_server::ControlPlaneServer;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};

use super::control_plane::Service;
use crate::registry::Condition;

/// The whole server, in the words of the health protocol.
const OVERALL: &str = "";

/// What tools learn about the services here.
pub(super) fn reflection() -> Result<ServerReflectionServer<impl ServerReflection>, Box<tonic_reflection::server::Error>>
{
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(tollgate_api::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(Box::new)
}

/// The health of a server whose store is open.
pub(super) async fn health() -> (HealthReporter, HealthServer<HealthService>) {
    let reporter = HealthReporter::new();
    reporter.set_serving::<ControlPlaneServer<Service>>().await;
    let service = HealthService::from_health_reporter(reporter.clone());
    (reporter, HealthServer::new(service))
}

/// Keeps the health at what the store can do: the contract's service is healthy while everything in it works, the whole
/// server as long as it serves what it holds, history included.
pub(super) async fn follow(reporter: HealthReporter, mut condition: watch::Receiver<Condition>) {
    loop {
        let current = *condition.borrow_and_update();
        if current == Condition::Writable {
            reporter.set_serving::<ControlPlaneServer<Service>>().await;
        } else {
            reporter.set_not_serving::<ControlPlaneServer<Service>>().await;
        }
        let is_whole = current != Condition::Closed;
        let overall = if is_whole { ServingStatus::Serving } else { ServingStatus::NotServing };
        reporter.set_service_status(OVERALL, overall).await;
        if condition.changed().await.is_err() {
            return;
        }
    }
}

/// Tells that the server is about to end.
pub(super) async fn set_draining(reporter: &HealthReporter) {
    reporter.set_not_serving::<ControlPlaneServer<Service>>().await;
    reporter.set_service_status(OVERALL, ServingStatus::NotServing).await;
}
