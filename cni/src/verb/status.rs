//! STATUS: whether an ADD would have what it needs.

use super::{needs, plan};
use crate::conf::NetConf;
use crate::env::{self, Args, Variables, Verb};
use crate::error::Error;
use crate::ipam::delegate::Plugin;
use crate::ipam::store;
use crate::version::SpecVersion;

pub(super) fn status(variables: &impl Variables, stdin: &[u8]) -> Result<(), Error> {
    let conf = NetConf::parse(stdin, &Args::default())?;
    needs(Verb::Status, SpecVersion::V1_1_0, conf.network.version)?;
    if let Some(name) = &conf.network.ipam_plugin {
        let dirs = env::plugin_dirs(variables)?;
        return Plugin { name, dirs: &dirs, conf: stdin }.if_known(Verb::Status);
    }
    let (pool, _) = plan::pool(&conf)?;
    pool.map_or(Ok(()), |pool| store::has_room(&conf.network.name, &pool))
}
