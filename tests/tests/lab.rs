//! The lab itself: is it what the other tests take it for?

use tollgate_lab::*;
fn main() -> anyhow::Result<()> {
    isolate();
    let cluster = Cluster::new(Topology::default())?;
    for _ in 0..3 {
        println!("{}", cluster.host(1).probe().impatient().tcp("10.96.0.1:80".parse()?));
        println!("{}", cluster.pod("pod-1a").probe().impatient().tcp("10.96.0.1:80".parse()?));
        println!("{}", cluster.pod("pod-1a").probe().impatient().udp("10.96.0.1:80".parse()?));
        println!("{}", cluster.pod("pod-1a").probe().impatient().udp("[fd00:96::1]:80".parse()?));
        println!("{}", cluster.pod("pod-1a").probe().impatient().tcp("[fd00:96::1]:80".parse()?));
    }
    Ok(())
}
