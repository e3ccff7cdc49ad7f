//! Who gets in, and what he may do there.

use std::time::Duration;

use rcgen::DnType;
use serde_json::json;
use tollgate_api::v1::{DeleteRequest, GetRequest, Key, Kind, ListRequest, StatusRequest, WatchRequest};
use tollgate_controlplane::client::{Access, Client, connect};
use tollgate_controlplane::server::{Security, ServerFiles};
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::{Server, apply, events, node, open_watch, service};
use crate::pki::Pki;

async fn start(security: Security) -> Server {
    Server::start_with(|config| config.security = security).await
}

/// What a client that wants to know the server's position is told: by the connection, or by the server.
async fn refusal(server: &Server, access: &Access) -> String {
    match connect(server.url(), access).await {
        Ok(mut client) => match client.status(StatusRequest::default()).await {
            Ok(_) => "ok".to_owned(),
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        },
        Err(error) => error.to_string(),
    }
}

fn code<T>(result: Result<T, Status>) -> Code {
    result.map_or_else(|status| status.code(), |_| Code::Ok)
}

async fn watch(client: &mut Client, kind: Kind) -> Code {
    let request = WatchRequest { kinds: vec![kind.into()], resume: None, client: "test".into() };
    code(client.watch(request).await)
}

#[tokio::test]
async fn certificates_that_are_not_right_are_named_on_both_sides() {
    let (pki, other) = (Pki::new(), Pki::new());
    let alice = [(DnType::CommonName, "alice"), (DnType::OrganizationName, "system:masters")];
    pki.issue("expired", &alice, (-7200, -3600));
    pki.issue("future", &alice, (3600, 7200));
    pki.issue("nameless", &[(DnType::OrganizationName, "system:masters")], (-60, 3600));
    pki.issue("fine", &alice, (-60, 3600));
    let server = start(pki.security()).await;
    let of_other = Access { certificate_authority: Some(pki.file("ca.crt")), ..other.access("operator") };
    for (access, expected) in [
        (pki.access("operator"), "ok"),
        (pki.access("fine"), "ok"),
        (Access::default(), "needs --certificate-authority FILE"),
        (other.stranger(), "has issued its certificate; give the CA of this control plane as --certificate-authority"),
        (pki.stranger(), "Unauthenticated: nothing says who you are; give a client certificate"),
        (of_other, "operator.crt: none of the server's client CAs has issued it"),
        (pki.access("expired"), "expired.crt: it has expired or is not valid yet; have a new one issued"),
        (pki.access("future"), "future.crt: it has expired or is not valid yet"),
        (pki.access("server"), "server.crt: it is not one of a client"),
        (
            pki.access("nameless"),
            "Unauthenticated: the client certificate can't be used: its subject has no common name",
        ),
        (pki.access("missing"), "cannot read the client certificate"),
    ] {
        // More than once: the answer must not depend on who is quicker, the alert or the end of the connection.
        for _ in 0..20 {
            let told = refusal(&server, &access).await;
            assert!(told == expected || (expected != "ok" && told.contains(expected)), "{expected}: {told}");
        }
    }
    server.stop().await;

    for (stem, expected) in
        [("expired", "its certificate has expired; issue a new one there"), ("future", "is not valid yet")]
    {
        let files =
            ServerFiles { certificate: pki.file(&format!("{stem}.crt")), key: pki.file(&format!("{stem}.key")) };
        let server = start(Security { tls: Some(files), ..pki.security() }).await;
        let told = refusal(&server, &pki.access("operator")).await;
        assert!(told.contains("is not trusted") && told.contains(expected), "{told}");
        server.stop().await;
    }
}

#[tokio::test]
async fn a_certificate_for_another_name_is_not_trusted() {
    let pki = Pki::new();
    let files = ServerFiles { certificate: pki.file("far.crt"), key: pki.file("far.key") };
    pki.issue("far", &[(DnType::CommonName, "far")], (-60, 60));
    let server = start(Security { tls: Some(files), ..pki.security() }).await;
    let url = server.url().replace("127.0.0.1", "localhost");
    let error = connect(&url, &pki.access("operator")).await.err().unwrap().to_string();
    assert!(
        error.contains("its certificate is for other names") && error.contains("--server-name localhost"),
        "{error}"
    );
    server.stop().await;
}

#[tokio::test]
async fn one_end_without_tls_is_named() {
    let pki = Pki::new();
    let server = start(pki.security()).await;
    let plain = server.url().replace("https", "http");
    for _ in 0..20 {
        let mut client = connect(&plain, &Access::default()).await.unwrap();
        let status = client.status(StatusRequest::default()).await.unwrap_err();
        assert!(status.message().contains("speaks TLS only: give its address as https://"), "{status:?}");
    }
    server.stop().await;
    let server = Server::start().await;
    let url = server.url().replace("http", "https");
    let error = connect(&url, &pki.access("operator")).await.err().unwrap().to_string();
    assert!(error.contains("does not speak TLS: is its address http://"), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn each_role_may_what_it_needs_and_no_more() {
    let pki = Pki::new();
    let server = start(pki.security()).await;
    let client = async |stem: &str| connect(server.url(), &pki.access(stem)).await.unwrap();
    let (mut operator, mut a, mut viewer) =
        (client("operator").await, client("node-a").await, client("viewer-backup").await);
    // A Node of its own: made, changed, read; no other, and nothing else.
    assert_eq!(code(apply(&mut a, &node("a")).await), Code::Ok);
    let mut changed = node("a");
    changed["metadata"]["labels"] = json!({"topology.kubernetes.io/zone": "z"});
    assert_eq!(code(apply(&mut a, &changed).await), Code::Ok);
    let denied = apply(&mut a, &node("b")).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(
        denied.message().starts_with("user \"system:node:a\" (group system:nodes) may not apply node b: "),
        "{denied}"
    );
    let web = service("web", json!({}));
    for client in [&mut a, &mut viewer] {
        assert_eq!(code(apply(client, &web).await), Code::PermissionDenied);
        let delete = DeleteRequest { key: Some(Key::node("a")), revision: 0 };
        assert_eq!(code(client.delete(delete).await), Code::PermissionDenied);
    }
    assert_eq!(code(apply(&mut operator, &web).await), Code::Ok);
    let get = GetRequest { key: Some(Key::service("default", "web")) };
    let list = |kind: Kind| ListRequest { kind: kind.into(), namespace: String::new() };
    for client in [&mut operator, &mut a, &mut viewer] {
        assert_eq!(code(client.get(get.clone()).await), Code::Ok);
        assert_eq!(code(client.list(list(Kind::EndpointSlice)).await), Code::Ok);
        assert_eq!(watch(client, Kind::Node).await, Code::Ok);
    }
    assert_eq!(code(viewer.list(list(Kind::Pod)).await), Code::Ok);
    assert_eq!(code(a.list(list(Kind::Pod)).await), Code::PermissionDenied);
    assert_eq!(watch(&mut a, Kind::Namespace).await, Code::PermissionDenied);
    // One kind too many, and none of them is watched.
    let kinds = vec![Kind::Service.into(), Kind::Pod.into()];
    let both = WatchRequest { kinds, resume: None, client: "test".into() };
    assert_eq!(code(a.watch(both).await), Code::PermissionDenied);
    server.stop().await;
}

#[tokio::test]
async fn a_token_says_who_one_is_as_a_certificate_does() {
    let pki = Pki::new();
    let file = |name: &str, text: &str| {
        std::fs::write(pki.file(name), text).unwrap();
        pki.file(name)
    };
    let tokens = file("tokens.csv", "s3cret,alice,1,system:masters\nn0de,system:node:a,2,\"system:nodes\"\n");
    let security = Security { client_ca_file: None, token_auth_file: Some(tokens), ..pki.security() };
    let both = Security { client_ca_file: Some(pki.file("ca.crt")), ..security.clone() };
    let in_the_clear = Security { tls: None, ..security.clone() };
    for security in [security, both, in_the_clear] {
        let server = start(security.clone()).await;
        let known = if security.tls.is_some() { pki.stranger() } else { Access::default() };
        let access = |token: &str| Access { token_file: Some(file("token", token)), ..known.clone() };
        assert_eq!(refusal(&server, &access("s3cret\n")).await, "ok");
        for token in ["s3cre", "s3cret1", "S3CRET", "alice"] {
            let told = refusal(&server, &access(token)).await;
            assert!(told.starts_with("Unauthenticated: the bearer token is not in the server's token file"), "{told}");
        }
        let told = refusal(&server, &access("two words")).await;
        assert!(told.contains("it must hold one line"), "{told}");
        assert!(refusal(&server, &known).await.contains("a bearer token (--token-file)"));
        let mut alice = connect(server.url(), &access("s3cret")).await.unwrap();
        assert_eq!(code(apply(&mut alice, &node("b")).await), Code::Ok);
        let mut a = connect(server.url(), &access("n0de")).await.unwrap();
        assert_eq!(code(apply(&mut a, &node("a")).await), Code::Ok);
        assert_eq!(code(apply(&mut a, &node("b")).await), Code::PermissionDenied);
        if security.client_ca_file.is_some() {
            assert_eq!(refusal(&server, &pki.access("operator")).await, "ok");
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn a_certificate_that_expires_ends_watches_and_requests() {
    let pki = Pki::new();
    let subject = [(DnType::CommonName, "alice"), (DnType::OrganizationName, "system:masters")];
    pki.issue("short", &subject, (-60, 6));
    let server = start(pki.security()).await;
    let mut client = connect(server.url(), &pki.access("short")).await.unwrap();
    let mut lasting = connect(server.url(), &pki.access("operator")).await.unwrap();
    let mut watch = open_watch(&mut client, &[Kind::Node], None).await;
    let mut other = open_watch(&mut lasting, &[Kind::Node], None).await;
    assert_eq!(events(&mut watch, 2).await, ["init 1", "done 1"]);
    let end = async {
        loop {
            if let Err(status) = watch.message().await {
                return status;
            }
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(60), end).await.expect("the watch goes on");
    assert_eq!(ended.code(), Code::Unauthenticated);
    assert!(ended.message().contains("(group system:masters) has expired at "), "{ended}");
    // Over the connection that TLS has accepted before.
    assert_eq!(code(client.status(StatusRequest::default()).await), Code::Unauthenticated);
    assert_eq!(code(apply(&mut lasting, &node("n")).await), Code::Ok);
    assert_eq!(events(&mut other, 3).await, ["init 1", "done 1", "apply 2 node n"]);
    server.stop().await;
}

#[tokio::test]
async fn health_is_open_to_all_and_reflection_is_not() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

    let pki = Pki::new();
    std::fs::write(pki.file("tokens.csv"), "s3cret,alice,1,system:masters\n").unwrap();
    let tokens = Some(pki.file("tokens.csv"));
    let server = start(Security { token_auth_file: tokens, ..Security::default() }).await;
    let channel = Endpoint::from_shared(server.url().to_owned()).unwrap().connect().await.unwrap();
    HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.unwrap();
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let asked = futures::stream::iter([list.clone()]);
    let refused = ServerReflectionClient::new(channel.clone()).server_reflection_info(asked).await;
    assert_eq!(code(refused), Code::Unauthenticated);
    let mut request = tonic::Request::new(futures::stream::iter([list]));
    request.metadata_mut().insert("authorization", "Bearer s3cret".parse().unwrap());
    ServerReflectionClient::new(channel).server_reflection_info(request).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_go_on_with_tls_holds_up_nobody() {
    let pki = Pki::new();
    let server = start(pki.security()).await;
    let address = server.url().trim_start_matches("https://").to_owned();
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(tokio::net::TcpStream::connect(&address).await.unwrap());
    }
    assert_eq!(refusal(&server, &pki.access("operator")).await, "ok");
    server.stop().await;
}
