//! The only place that speaks to the kernel: the commands of iptables and `ipset`, one process for each text or listing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use tollgate_model::name::IpFamily;
use tollgate_nftables::socket::{Failure, Socket};

use super::name::{self, SetName};
use super::object::Table;
use super::readback::{self, Listing};
use super::transaction::{self, BatchSize, Step};
use super::variant::{Traces, Variant, choose};

/// Where commands are looked for besides `PATH`, which often lacks these for users that are not root.
const DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];
/// How long the legacy variant waits for its lock, which all programs of the machine share, in seconds.
const LOCK_WAIT: &str = "30";
/// `iptables-restore` ends like this where the lock could not be had (`RESOURCE_PROBLEM`).
const RESOURCE_PROBLEM: i32 = 4;
/// How many lines of what a command says go into an error.
const LINES: usize = 2;
/// A text of this many chains is small enough for the nft variant, whose user time grows with the square of them: 10,000
/// Services with 10 endpoints took 1.0 s of it at 2,000 chains a text, 0.9 s at 1,000 and 0.5 s at 500.
const NFT_BATCH: usize = 500;

/// A command, and what goes before its arguments.
#[derive(Clone, Debug)]
struct Program {
    path: PathBuf,
    prefix: Option<&'static str>,
}

/// The commands of one variant, by family.
#[derive(Clone, Debug)]
struct Tools {
    restore: BTreeMap<IpFamily, Program>,
    save: BTreeMap<IpFamily, Program>,
}

/// The tables of one variant and the sets, of the network namespace that the calling thread is in.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    variant: Variant,
    tools: Tools,
    /// `ipset`, for who keeps sets by it.
    ipset: Option<Program>,
}

/// All sets by name.
pub(crate) type Sets = BTreeMap<String, SetSummary>;

/// What a set is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SetSummary {
    /// Type, family and whether its members can have timeouts.
    pub(crate) kind: String,
    /// Whether it has no member.
    pub(crate) is_empty: bool,
}

/// What the commands print of one family.
#[derive(Debug, Default)]
pub(crate) struct Saved {
    tables: String,
    sets: Arc<Sets>,
    members: Vec<(SetName, String)>,
}

/// Why a command did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error("{0} is not there (looked in PATH, /usr/sbin and /sbin); the Debian package {1} has it")]
    Missing(&'static str, &'static str),
    /// It could not be started or spoken to.
    #[error("cannot run {}", command.display())]
    Run {
        /// The command.
        command: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It refused.
    #[error("{command} refused {what}: {cause}")]
    Refused {
        /// The command.
        command: String,
        /// What was tried.
        what: String,
        /// What it says.
        cause: String,
    },
    /// Another program holds the lock.
    #[error("{command} did not get the lock of iptables within {LOCK_WAIT} s: {cause}")]
    Locked {
        /// The command.
        command: String,
        /// What it says.
        cause: String,
    },
    /// The table has rules that iptables can't read.
    #[error(
        "the {family} table {table} has rules that iptables can't read, made with nft; remove them, or use --proxy-mode nftables"
    )]
    Incompatible {
        /// The family.
        family: IpFamily,
        /// The table.
        table: &'static str,
    },
}

impl Kernel {
    /// Finds the commands, of the variant that the node uses already.
    pub(crate) fn open() -> Result<Self, Error> {
        let kernel = Self::open_rules()?;
        kernel.ipset()?;
        Ok(kernel)
    }

    /// The same for who needs no sets from here.
    pub(crate) fn open_rules() -> Result<Self, Error> {
        let usable = Variant::ALL.map(|variant| {
            let tools = Tools::find(variant).filter(|_| variant == Variant::Legacy || kernel_has_nf_tables());
            tools.map(|tools| (variant, tools))
        });
        let (variant, tools, reason) = match usable {
            [None, None] => return Err(Error::Missing("iptables", "iptables")),
            [Some((variant, tools)), None] | [None, Some((variant, tools))] => {
                (variant, tools, "the other is not installed, or this kernel lacks it")
            }
            [Some((_, nft)), Some((_, legacy))] => {
                let (variant, reason) = choose_installed(&nft, &legacy)?;
                (variant, if variant == Variant::Nft { nft } else { legacy }, reason)
            }
        };
        tracing::info!(%variant, reason, "this node's iptables");
        Ok(Self::with(variant, tools))
    }

    /// All variants that are installed and may have something here. None without `ipset`: rules of ours need it, so that there
    /// are none.
    pub(crate) fn open_all() -> Result<Vec<Self>, Error> {
        if find("ipset").is_none() {
            return Ok(Vec::new());
        }
        Ok(Self::open_all_rules())
    }

    /// The same for who needs no sets from here.
    pub(crate) fn open_all_rules() -> Vec<Self> {
        let installed = Variant::ALL.into_iter().filter_map(|variant| Some((variant, Tools::find(variant)?)));
        installed
            .filter(|(variant, _)| is_in_use(*variant) && (*variant == Variant::Legacy || kernel_has_nf_tables()))
            .map(|(variant, tools)| Self::with(variant, tools))
            .collect()
    }

    fn with(variant: Variant, tools: Tools) -> Self {
        let ipset = find("ipset").map(|path| Program { path, prefix: None });
        Self { variant, tools, ipset }
    }

    fn ipset(&self) -> Result<&Program, Error> {
        self.ipset.as_ref().ok_or(Error::Missing("ipset", "ipset"))
    }

    /// The variant.
    pub(crate) fn variant(&self) -> Variant {
        self.variant
    }

    /// How many chains a text may have.
    pub(crate) fn batch_size(&self) -> BatchSize {
        match self.variant {
            Variant::Nft => BatchSize(NFT_BATCH),
            Variant::Legacy => BatchSize(usize::MAX),
        }
    }

    /// One step of a commit. A text is one transaction for each of its tables; sets are written line by line.
    pub(crate) fn run(&self, step: &Step) -> Result<(), Error> {
        match step {
            Step::Sets(text) => {
                let text = std::slice::from_ref(text);
                self.ipset()?.run(&["-exist", "restore"], text, "changes of sets").map(drop)
            }
            Step::Destroy(sets) => self.destroy_all(sets),
            Step::Rules(family, text) => {
                let result = self.restore(*family, text, "a transaction");
                if self.variant == Variant::Nft && matches!(result, Err(Error::Refused { .. })) {
                    self.cure(*family);
                }
                result
            }
        }
    }

    fn destroy_all(&self, sets: &[String]) -> Result<(), Error> {
        let text: Vec<String> = sets.iter().map(|set| format!("destroy {set}\n")).collect();
        match self.ipset()?.run(&["-exist", "restore"], &text, "to destroy sets") {
            Err(Error::Refused { .. }) => {}
            result => return result.map(drop),
        }
        for set in sets {
            match self.destroy(set) {
                Err(Error::Refused { cause, .. }) => tracing::warn!(set, cause, "this set of Tollgate's stays"),
                result => result?,
            }
        }
        Ok(())
    }

    fn restore(&self, family: IpFamily, text: &[String], what: &str) -> Result<(), Error> {
        self.tools.restore(family)?.run(&["--noflush", "--wait", LOCK_WAIT], text, what).map(drop)
    }

    /// After a transaction that the kernel refused, nf_tables validates the whole table again at every rule of the next one
    /// (seen on Linux 6.18: 5,000 Services did not load within 20 s, where 2 s is usual). A small one that succeeds ends that.
    fn cure(&self, family: IpFamily) {
        let chain = name::SCRATCH;
        for text in [
            format!("*nat\n:{chain} - [0:0]\n-A {chain} -j RETURN\nCOMMIT\n"),
            format!("*nat\n:{chain} - [0:0]\n-X {chain}\nCOMMIT\n"),
        ] {
            if let Err(error) = self.restore(family, &[text], "an empty transaction") {
                tracing::debug!(%error, "after a refused transaction");
            }
        }
    }

    /// The rules of a family, without the sets.
    pub(crate) fn save_rules(&self, family: IpFamily) -> Result<Saved, Error> {
        Ok(Saved { tables: self.tables(family)?, ..Saved::default() })
    }

    /// What each of these families holds.
    pub(crate) fn save(&self, families: impl IntoIterator<Item = IpFamily>) -> Result<Vec<Saved>, Error> {
        let sets = Arc::new(self.sets()?);
        families.into_iter().map(|family| self.save_family(family, sets.clone())).collect()
    }

    fn save_family(&self, family: IpFamily, sets: Arc<Sets>) -> Result<Saved, Error> {
        let mut members = Vec::new();
        for set in SetName::ALL {
            let name = set.text(family);
            if sets.get(&name).is_some_and(|set| !set.is_empty) {
                let text = self.ipset()?.run(&["save", &name], &[], &format!("to list the set {name}"))?;
                members.push((set, text));
            }
        }
        Ok(Saved { tables: self.tables(family)?, sets, members })
    }

    /// What `iptables-save` prints of a family.
    pub(crate) fn tables(&self, family: IpFamily) -> Result<String, Error> {
        if self.variant == Variant::Legacy && legacy_tables(family).is_empty() {
            return Ok(String::new());
        }
        let text = self.tools.save(family)?.run(&["-c"], &[], "to list its tables")?;
        // Printed where the rules should be, and no error.
        for line in text.lines().filter(|line| line.starts_with("# Table `") && line.contains("is incompatible")) {
            if let Some(table) = line.split(['`', '\'']).nth(1).and_then(Table::named) {
                return Err(Error::Incompatible { family, table: table.as_str() });
            }
        }
        Ok(text)
    }

    /// Whether the kernel takes sets of each type that is used.
    pub(crate) fn check_sets(&self) -> Result<(), Error> {
        let set = name::SCRATCH_SET;
        let each = |kind| format!("create {set} {kind}\ndestroy {set}\n");
        let kinds: BTreeSet<&str> = SetName::ALL.into_iter().map(transaction::set_type).collect();
        // With -exist, to destroy one that is not there is no error.
        let text = std::iter::once(format!("destroy {set}\n")).chain(kinds.into_iter().map(each)).collect::<Vec<_>>();
        self.ipset()?.run(&["-exist", "restore"], &text, "to make and destroy sets").map(drop)
    }

    /// All sets.
    pub(crate) fn sets(&self) -> Result<Sets, Error> {
        let text = self.ipset()?.run(&["list", "-terse"], &[], "to list the sets")?;
        Ok(readback::sets(&text))
    }

    /// Destroys a set.
    pub(crate) fn destroy(&self, set: &str) -> Result<(), Error> {
        self.ipset()?.run(&["-exist", "destroy", set], &[], &format!("to destroy the set {set}")).map(drop)
    }
}

impl Saved {
    /// What it says.
    pub(crate) fn listing(&self, family: IpFamily) -> Listing<'_> {
        let mut listing = Listing {
            family,
            chains: BTreeMap::new(),
            jumps: Vec::new(),
            sets: &self.sets,
            elements: BTreeSet::new(),
            foreign: Vec::new(),
        };
        readback::tables(&self.tables, &mut listing);
        for (set, text) in &self.members {
            readback::members(*set, text, &mut listing);
        }
        listing
    }

    /// Whether there is no chain of ours.
    pub(crate) fn has_no_rules(&self) -> bool {
        !self.tables.contains(":TOLLGATE-")
    }

    /// The lines of all tables, counters and all.
    pub(crate) fn tables(&self) -> &str {
        &self.tables
    }
}

impl Tools {
    fn find(variant: Variant) -> Option<Self> {
        let of = |verb: &'static str| -> Option<BTreeMap<IpFamily, Program>> {
            IpFamily::ALL.into_iter().map(|family| Some((family, Program::find(variant, family, verb)?))).collect()
        };
        Some(Self { restore: of("restore")?, save: of("save")? })
    }

    fn restore(&self, family: IpFamily) -> Result<&Program, Error> {
        self.restore.get(&family).ok_or(Error::Missing("iptables-restore", "iptables"))
    }

    fn save(&self, family: IpFamily) -> Result<&Program, Error> {
        self.save.get(&family).ok_or(Error::Missing("iptables-save", "iptables"))
    }

    /// What the variant holds here, the least that decides.
    fn traces(&self, variant: Variant) -> Result<Traces, Error> {
        self.traces_in(variant, &["mangle", "filter", "nat", "raw"])
    }

    fn traces_in(&self, variant: Variant, tables: &[&str]) -> Result<Traces, Error> {
        let mut traces = Traces::default();
        if !is_in_use(variant) {
            return Ok(traces);
        }
        for table in tables {
            for family in IpFamily::ALL {
                if variant == Variant::Legacy && !has_legacy_table(family, table) {
                    continue;
                }
                let listing = self.save(family)?.run(&["-t", table], &[], &format!("to list the table {table}"))?;
                traces.add(&listing);
            }
            if traces.is_certain() {
                break;
            }
        }
        Ok(traces)
    }
}

fn choose_installed(nft: &Tools, legacy: &Tools) -> Result<(Variant, &'static str), Error> {
    let legacy = legacy.traces(Variant::Legacy)?;
    // Without legacy rules there is nothing to weigh, and a long listing to spare.
    if legacy == Traces::default() {
        return Ok((Variant::Nft, "the legacy variant has no rules here"));
    }
    // Against the kubelet's chains nothing counts but more of these, which are in this table.
    let nft = if legacy.is_certain() { nft.traces_in(Variant::Nft, &["mangle"]) } else { nft.traces(Variant::Nft) };
    Ok(choose(&nft?, &legacy))
}

/// Whether a variant may hold something here. To ask the legacy commands would load their modules and make their tables.
fn is_in_use(variant: Variant) -> bool {
    match variant {
        Variant::Nft => kernel_has_nf_tables(),
        Variant::Legacy => IpFamily::ALL.into_iter().any(|family| !legacy_tables(family).is_empty()),
    }
}

/// Not where it is known that it has not: whoever lacks the right to ask is told so when he tries to write.
fn kernel_has_nf_tables() -> bool {
    let generation = Socket::open().map_err(Failure::Receive).and_then(|mut socket| socket.generation());
    !matches!(generation, Err(Failure::Refused { errno, .. }) if errno != Errno::EPERM)
}

fn has_legacy_table(family: IpFamily, table: &str) -> bool {
    legacy_tables(family).lines().any(|line| line == table)
}

/// The legacy tables of this network namespace, one a line; none where the module is not loaded.
fn legacy_tables(family: IpFamily) -> String {
    let file = match family {
        IpFamily::V4 => "ip_tables_names",
        IpFamily::V6 => "ip6_tables_names",
    };
    fs::read_to_string(Path::new("/proc/thread-self/net").join(file)).unwrap_or_default()
}

/// Where the legacy variant drops what it forwards and has no rule for, the command with which to change its chain FORWARD.
pub(in crate::backend) fn legacy_forward_drop(family: IpFamily) -> Result<Option<String>, Error> {
    // To ask would make the table.
    if !has_legacy_table(family, Table::Filter.as_str()) {
        return Ok(None);
    }
    let save =
        Program::find(Variant::Legacy, family, "save").ok_or(Error::Missing("iptables-legacy-save", "iptables"))?;
    let listing = save.run(&["-t", Table::Filter.as_str()], &[], "to list the table filter")?;
    if !listing.lines().any(|line| line.starts_with(":FORWARD DROP ")) {
        return Ok(None);
    }
    let name = save.prefix.map_or_else(|| save.path.file_name().unwrap_or_default().to_string_lossy(), Into::into);
    Ok(Some(name.trim_end_matches("-save").to_owned()))
}

impl Program {
    /// `iptables-nft-restore` and the like; else the program that is all of the variant's in one; else `iptables-restore`
    /// without a variant in its name, if it says that it is of this one.
    fn find(variant: Variant, family: IpFamily, verb: &'static str) -> Option<Self> {
        let plain = match (family, verb) {
            (IpFamily::V4, "restore") => "iptables-restore",
            (IpFamily::V6, "restore") => "ip6tables-restore",
            (IpFamily::V4, _) => "iptables-save",
            (IpFamily::V6, _) => "ip6tables-save",
        };
        let (program, _) = plain.split_once('-')?;
        if let Some(path) = find(&format!("{program}-{variant}-{verb}")) {
            return Some(Self { path, prefix: None });
        }
        if let Some(path) = find(&format!("xtables-{variant}-multi")) {
            return Some(Self { path, prefix: Some(plain) });
        }
        let path = find(plain)?;
        let output = Command::new(&path).arg("--version").output().ok()?;
        let said = String::from_utf8_lossy(&output.stdout);
        said.contains(variant.in_version()).then_some(Self { path, prefix: None })
    }

    fn run(&self, arguments: &[&str], input: &[String], what: &str) -> Result<String, Error> {
        let failed = |source| Error::Run { command: self.path.clone(), source };
        let output = self.talk(arguments, input).map_err(failed)?;
        if output.status.success() {
            return String::from_utf8(output.stdout).map_err(|error| failed(io::Error::other(error)));
        }
        let name = self.prefix.map_or_else(|| self.path.file_name().unwrap_or_default().to_string_lossy(), Into::into);
        let (command, cause) = (name.into_owned(), cause(&output));
        if output.status.code() == Some(RESOURCE_PROBLEM) && cause.contains("lock") {
            return Err(Error::Locked { command, cause });
        }
        Err(Error::Refused { command, what: what.to_owned(), cause })
    }

    /// The input is a file in memory that is whole before the command starts: through a pipe, a proxy that is killed while it
    /// writes would leave the command with a part of it.
    fn talk(&self, arguments: &[&str], input: &[String]) -> io::Result<Output> {
        let mut file = File::from(memfd_create(c"iptables-input", MFdFlags::MFD_CLOEXEC)?);
        input.iter().try_for_each(|part| file.write_all(part.as_bytes()))?;
        file.rewind()?;
        Command::new(&self.path).args(self.prefix).args(arguments).env("LC_ALL", "C").stdin(file).output()
    }
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(DIRECTORIES.map(PathBuf::from));
    directories.map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// The first lines that a command prints, without advice to read its help; the nft variant has one for each rule.
fn cause(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let is_news = |line: &&str| !line.trim().is_empty() && !line.starts_with("Try `") && !line.starts_with("# Warning");
    let lines: Vec<_> = said.lines().filter(is_news).map(str::trim).take(LINES).collect();
    if lines.is_empty() { output.status.to_string() } else { lines.join("; ") }
}
