//! SCTP, which every row for all transports has as well where the kernel has it: here so that its absence is seen.

use tollgate_lab::Protocol::Sctp;
use tollgate_lab::object::Service;

use crate::Case;
use crate::scene::{At, Client, Scene};
use crate::table::{Expect, Table};

pub(crate) const CASES: &[(&str, Case)] = &[("sctp", Case::Sctp(every_frontend))];

fn every_frontend(scene: &Scene<'_>) -> Table {
    let exposed = |name: &str| -> Service {
        let service = scene.service(name).port(Sctp, 82);
        service.external_ip(scene.external_ip(name)).load_balancer(scene.load_balancer_ip(name))
    };
    let pods = &["pod-1a", "pod-2a", "pod-2b"];
    let table = Table::new().given(exposed("web")).given(scene.ready("web", pods)).given(exposed("nobody"));
    let clients = [Client::Pod("pod-1b"), Client::Node(1), Client::Outside];
    let dials = At::ALL.into_iter().flat_map(|at| clients.map(|client| (at, client)));
    dials.fold(table, |table, (at, client)| {
        table
            .row(client, Sctp, at.of("web", 82), Expect::Only(pods))
            .row(client, Sctp, at.of("web", 82), Expect::DialledPeer)
            .row(client, Sctp, at.of("nobody", 82), Expect::Refused)
    })
}
