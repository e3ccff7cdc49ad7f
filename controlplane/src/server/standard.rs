//! The services that tools expect of any gRPC server: health, for probes and load balancers, and reflection, for whoever
//! wants to know the contract without having it.

use futures::stream::{self, BoxStream, StreamExt};
use tollgate_api::v1::control_plane_server::ControlPlaneServer;
use tonic::{Request, Response, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::health_check_response::ServingStatus as WireStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_health::server::{HealthReporter, HealthService};
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};

use super::control_plane::Service;

/// The whole server, in the words of the health protocol.
const OVERALL: &str = "";

/// The health service, whose watches end once they have told that the server does not serve any more. Those of
/// [`HealthService`] never end, and the server's end would wait for them.
pub(super) struct EndingHealth(HealthService);

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
pub(super) async fn health() -> (HealthReporter, HealthServer<EndingHealth>) {
    let reporter = HealthReporter::new();
    reporter.set_serving::<ControlPlaneServer<Service>>().await;
    let service = EndingHealth(HealthService::from_health_reporter(reporter.clone()));
    (reporter, HealthServer::new(service))
}

/// Tells that the server is about to end.
pub(super) async fn set_draining(reporter: &HealthReporter) {
    reporter.set_not_serving::<ControlPlaneServer<Service>>().await;
    reporter.set_service_status(OVERALL, ServingStatus::NotServing).await;
}

#[tonic::async_trait]
impl Health for EndingHealth {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        self.0.check(request).await
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let statuses = self.0.watch(request).await?.into_inner();
        let ending = stream::unfold(Some(statuses), |statuses| async move {
            let mut statuses = statuses?;
            let status = statuses.next().await?;
            let is_last = status.as_ref().map_or(true, |response| response.status() == WireStatus::NotServing);
            Some((status, (!is_last).then_some(statuses)))
        });
        Ok(Response::new(ending.boxed()))
    }
}
