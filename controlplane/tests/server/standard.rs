//! What any gRPC tool may ask: is the server healthy, and what does it offer.

use tollgate_api::v1::StatusRequest;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use crate::harness::Server;

const CONTROL_PLANE: &str = "tollgate.v1.ControlPlane";

async fn channel(server: &Server) -> Channel {
    Endpoint::from_shared(server.url().to_owned()).unwrap().connect().await.unwrap()
}

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

fn status(response: Option<HealthCheckResponse>) -> Option<ServingStatus> {
    response.map(|response| response.status())
}

#[tokio::test]
async fn the_server_is_healthy_until_it_drains() {
    let server = Server::start().await;
    let mut health = HealthClient::new(channel(&server).await);
    let mut watches = Vec::new();
    for service in ["", CONTROL_PLANE] {
        assert_eq!(health.check(about(service)).await.unwrap().into_inner().status(), ServingStatus::Serving);
        let mut watch = health.watch(about(service)).await.unwrap().into_inner();
        assert_eq!(status(watch.message().await.unwrap()), Some(ServingStatus::Serving), "{service:?}");
        watches.push(watch);
    }
    assert_eq!(health.check(about("other")).await.unwrap_err().code(), Code::NotFound);

    server.stop().await;
    for mut watch in watches {
        assert_eq!(status(watch.message().await.unwrap()), Some(ServingStatus::NotServing));
        // In order, and not cut off after the server's patience.
        assert_eq!(watch.message().await.unwrap_err().code(), Code::Unavailable);
    }
}

#[tokio::test]
async fn tools_learn_the_contract_from_the_server() {
    let server = Server::start().await;
    let mut client = ServerReflectionClient::new(channel(&server).await);
    let ask = |question| ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let questions = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol(CONTROL_PLANE.to_owned())),
    ];
    let mut answers = client.server_reflection_info(futures::stream::iter(questions)).await.unwrap().into_inner();
    let mut answer = async || -> MessageResponse {
        let ServerReflectionResponse { message_response, .. } = answers.message().await.unwrap().unwrap();
        message_response.unwrap()
    };
    let MessageResponse::ListServicesResponse(list) = answer().await else { panic!("no list of services") };
    let mut names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    assert_eq!(names, ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", CONTROL_PLANE]);
    let MessageResponse::FileDescriptorResponse(files) = answer().await else { panic!("no file") };
    let file = &files.file_descriptor_proto[0];
    assert!(file.windows(13).any(|part| part == b"StatusRequest"));
    server.client().await.status(StatusRequest::default()).await.unwrap();
    server.stop().await;
}
