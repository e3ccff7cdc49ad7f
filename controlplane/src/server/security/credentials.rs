//! What the files say now, and noticing when they say something else.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::pki_types::UnixTime;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tollgate_api::pem::{self, File};

use super::authenticator::{PeerCertificate, Proof};
use super::identity::Identity;
use super::token::Tokens;
use super::{Error, Security};

/// How often the files are looked at. SIGHUP has them looked at now.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// What the files say.
pub(crate) struct Credentials {
    /// Another number after each change.
    pub(crate) generation: u64,
    /// What the listener speaks; `None`: no TLS.
    pub(crate) tls: Option<Arc<ServerConfig>>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    tokens: Option<Tokens>,
}

/// The files' content, to be compared with what it was.
#[derive(PartialEq, Eq)]
struct Contents {
    server: Option<(File, File)>,
    client_ca: Option<File>,
    tokens: Option<File>,
}

/// Reads the files again when they change.
pub(crate) struct Reloader {
    security: Security,
    hangup: Signal,
    contents: Contents,
    /// The last reason why they can't be used, so that it is told once.
    complaint: Option<String>,
    credentials: watch::Sender<Arc<Credentials>>,
}

/// Reads the files. The reloader is there if there are any.
///
/// # Errors
/// When one can't be used.
pub(crate) fn open(security: &Security) -> Result<(watch::Receiver<Arc<Credentials>>, Option<Reloader>), Error> {
    let contents = Contents::read(security)?;
    let credentials = watch::Sender::new(Arc::new(Credentials::new(&contents, 1)?));
    let receiver = credentials.subscribe();
    if contents == Contents::none() {
        return Ok((receiver, None));
    }
    warn_of_exposed_files(security);
    let hangup = signal(SignalKind::hangup()).map_err(Error::Signal)?;
    let security = security.clone();
    Ok((receiver, Some(Reloader { security, hangup, contents, complaint: None, credentials })))
}

// === impl Credentials ===

impl Credentials {
    fn new(contents: &Contents, generation: u64) -> Result<Self, pem::Error> {
        let Contents { server, client_ca, tokens } = contents;
        let clients = client_ca.as_ref().map(client_verifier).transpose()?;
        let tls = server.as_ref().map(|(certificate, key)| server_config(certificate, key, clients.clone()));
        let tokens = tokens.as_ref().map(Tokens::parse).transpose()?;
        Ok(Credentials { generation, tls: tls.transpose()?.map(Arc::new), clients, tokens })
    }

    /// Who proves that he is who; otherwise the reason why not.
    pub(crate) fn identify(&self, proof: &Proof) -> Result<Identity, String> {
        if !self.asks() {
            return Ok(Identity::unsecured());
        }
        match proof {
            Proof::None => Err(format!("nothing says who you are; {}", self.wanted())),
            Proof::Malformed => Err(format!("the authorization header is not `Bearer TOKEN`; {}", self.wanted())),
            Proof::Certificate(certificate) => self.identify_certificate(certificate),
            Proof::Token(digest) => match self.tokens.as_ref().map(|tokens| tokens.find(digest)) {
                Some(Some(identity)) => Ok(identity.clone()),
                Some(None) => Err("the bearer token is not in the server's token file; get the current one".to_owned()),
                None => Err(format!("this server takes no bearer tokens; {}", self.wanted())),
            },
        }
    }

    /// Whether clients are asked who they are.
    pub(crate) fn asks(&self) -> bool {
        self.clients.is_some() || self.tokens.is_some()
    }

    fn identify_certificate(&self, certificate: &PeerCertificate) -> Result<Identity, String> {
        let unusable = |reason: &str| format!("the client certificate can't be used: {reason}");
        let (identity, not_after) = certificate.identity.as_ref().map_err(|reason| unusable(reason))?;
        if *not_after <= SystemTime::now() {
            let at = Timestamp::try_from(*not_after).map(|at| format!(" at {at}")).unwrap_or_default();
            return Err(format!("the client certificate of {identity} has expired{at}; have a new one issued"));
        }
        if certificate.was_accepted_in(self.generation) {
            return Ok(identity.clone());
        }
        let [own, between @ ..] = certificate.chain.as_slice() else { return Err(unusable("it is empty")) };
        let verifier = self.clients.as_ref().ok_or_else(|| unusable("this server takes none"))?;
        verifier.verify_client_cert(own, between, UnixTime::now()).map_err(|error| {
            format!("the client certificate of {identity} is not accepted any more: {error}; have a new one issued")
        })?;
        certificate.accept_in(self.generation);
        Ok(identity.clone())
    }

    fn wanted(&self) -> &'static str {
        match (&self.clients, &self.tokens) {
            (Some(_), None) => "give a client certificate (--client-certificate, --client-key)",
            (None, Some(_)) => "give a bearer token (--token-file)",
            _ => "give a client certificate (--client-certificate, --client-key) or a bearer token (--token-file)",
        }
    }
}

/// Certificates are looked at where clients show them: health probes have none, others have tokens.
fn client_verifier(authorities: &File) -> Result<Arc<dyn ClientCertVerifier>, pem::Error> {
    WebPkiClientVerifier::builder_with_provider(authorities.roots()?.into(), pem::provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| authorities.unusable(error.to_string()))
}

fn server_config(
    certificate: &File,
    key: &File,
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<ServerConfig, pem::Error> {
    let builder = ServerConfig::builder_with_provider(pem::provider())
        .with_safe_default_protocol_versions()
        .expect("ring has the suites of TLS 1.2 and 1.3");
    let builder = match clients {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(certificate.certificates()?, key.private_key()?).map_err(|error| {
        certificate.unusable(format!("it does not go with the key {}: {error}", key.path.display()))
    })?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

// === impl Contents ===

impl Contents {
    fn none() -> Self {
        Contents { server: None, client_ca: None, tokens: None }
    }

    fn read(security: &Security) -> Result<Self, pem::Error> {
        let read = |path: Option<&Path>, role| path.map(|path| File::read(path, role)).transpose();
        let (certificate, key) =
            security.tls.as_ref().map(|tls| (tls.certificate.as_path(), tls.key.as_path())).unzip();
        Ok(Contents {
            server: read(certificate, "server certificate")?.zip(read(key, "server key")?),
            client_ca: read(security.client_ca_file.as_deref(), "client CA file")?,
            tokens: read(security.token_auth_file.as_deref(), "token file")?,
        })
    }
}

// === impl Reloader ===

impl Reloader {
    /// Looks at the files for ever.
    pub(crate) async fn run(mut self) -> Infallible {
        loop {
            let is_asked = tokio::select! {
                _ = self.hangup.recv() => true,
                () = tokio::time::sleep(LOOK_INTERVAL) => false,
            };
            let security = self.security.clone();
            // A file system may hang.
            let Ok(read) = spawn_blocking(move || Contents::read(&security)).await else { continue };
            let has_changed = match &read {
                Ok(contents) => *contents != self.contents,
                Err(_) => true,
            };
            if has_changed {
                self.take(read);
            } else if is_asked {
                tracing::info!("certificates and tokens are as they were");
            }
        }
    }

    /// The last that could be used stays in use until there is something new that can be used.
    fn take(&mut self, read: Result<Contents, pem::Error>) {
        let generation = self.credentials.borrow().generation + 1;
        let made = read.and_then(|contents| Ok((Credentials::new(&contents, generation)?, contents)));
        match made {
            Ok((credentials, contents)) => {
                (self.contents, self.complaint) = (contents, None);
                self.credentials.send_replace(Arc::new(credentials));
                warn_of_exposed_files(&self.security);
                tracing::info!("certificates and tokens have changed and are in use");
            }
            Err(error) => {
                let complaint = crate::chain(&error);
                if self.complaint.as_ref() != Some(&complaint) {
                    tracing::warn!(
                        error = complaint,
                        "certificates or tokens have changed and can't be used; the earlier ones stay in use"
                    );
                    self.complaint = Some(complaint);
                }
            }
        }
    }
}

fn warn_of_exposed_files(security: &Security) {
    let secrets = [security.tls.as_ref().map(|tls| &tls.key), security.token_auth_file.as_ref()];
    for path in secrets.into_iter().flatten() {
        if let Some(mode) = pem::exposed(path) {
            tracing::warn!(file = %path.display(), mode, "every user of this machine can read this secret; chmod 600 it");
        }
    }
}
