//! The end of the real server while clients are connected.

use std::io::{BufRead, BufReader};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tollgate_api::v1::watch_event::Event;
use tollgate_api::v1::{ApplyRequest, Kind, WatchRequest};
use tollgate_controlplane::client::{Access, connect};
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use crate::process::{Process, command};

#[tokio::test(flavor = "multi_thread")]
async fn no_idle_client_holds_up_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let server = Process::start(dir.path());
    let channel = || async { Endpoint::from_shared(server.url.clone()).unwrap().connect().await.unwrap() };
    // One that has asked something and keeps its stream for the next question.
    let question = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let (questions, asked) = tokio::sync::mpsc::unbounded_channel();
    questions.send(question).unwrap();
    let asked = futures::stream::unfold(asked, |mut asked| async move { Some((asked.recv().await?, asked)) });
    let mut reflection = ServerReflectionClient::new(channel().await);
    let mut answers = reflection.server_reflection_info(asked).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    let mut health = HealthClient::new(channel().await);
    let mut healths = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    healths.message().await.unwrap().unwrap();
    let mut client = connect(&server.url, &Access::default()).await.unwrap();
    let watch = WatchRequest { kinds: vec![Kind::Service.into()], resume: None, client: "test".into() };
    let mut events = client.watch(watch).await.unwrap().into_inner();
    for _ in 0..2 {
        events.message().await.unwrap().unwrap();
    }
    // Something that this watch is not about: its token is behind.
    let node = br#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}"#.to_vec();
    let revision = client.apply(ApplyRequest { json: node }).await.unwrap().into_inner().object.unwrap().revision;

    let (is_done, log) = tokio::task::spawn_blocking(move || server.signal(Signal::SIGTERM)).await.unwrap();
    assert!(is_done && log.contains("stopped"), "{log}");
    assert!(!log.contains("leaving"), "{log}");
    let Some(Event::Progress(last)) = events.message().await.unwrap().unwrap().event else { panic!("no last word") };
    assert_eq!(last.at.unwrap().revision, revision);
    assert_eq!(events.message().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(answers.message().await.unwrap_err().code(), Code::Unavailable);
    healths.message().await.unwrap().unwrap();
    assert_eq!(healths.message().await.unwrap_err().code(), Code::Unavailable);
    drop(questions);
}

#[test]
fn a_client_that_hangs_is_left_behind_and_nothing_else_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Process::start(dir.path());
    let mut client = command(&["watch", "ns", "--server", &server.url]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(client.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("INIT"), "{line}");
    kill(Pid::from_raw(client.id().try_into().unwrap()), Signal::SIGSTOP).unwrap();
    let (is_done, log) = server.signal(Signal::SIGTERM);
    client.kill().unwrap();
    client.wait().unwrap();
    assert!(is_done && log.contains("some clients did not take the end of their requests"), "{log}");
    assert!(log.contains("stopped") && !log.contains("the writer still has work"), "{log}");
}
