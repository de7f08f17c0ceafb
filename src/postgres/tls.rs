//! TLS to PostgreSQL: libpq's settings (<https://www.postgresql.org/docs/current/libpq-ssl.html>), with one difference: where TLS is asked
//! for, the server's certificate and name are verified. libpq's `sslmode=require` verifies nothing, and so protects from nobody who
//! stands in between.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::pgpass;

/// What the settings say of TLS.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The chain of certificates is verified, and not the name in it.
    pub(super) any_name: bool,
    /// A file of certificates that are trusted, or `system`. Without it libpq's own, if it is there, else the system's.
    pub(super) roots: Option<String>,
    /// The client's certificate and its key.
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    /// Where libpq's files are.
    pub(super) home: Option<PathBuf>,
}

/// Makes what connects. An error is one line.
pub(super) fn connector(wanted: &Wanted) -> Result<MakeRustlsConnect, String> {
    let provider = Arc::new(ring::default_provider());
    let roots = Arc::new(roots(wanted)?);
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
        .build()
        .map_err(|error| format!("the trusted certificates cannot be used: {error}"))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?;
    // The builder's own verifier is the same; this one may leave the name out.
    let builder = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { verifier, any_name: wanted.any_name }));
    let mut config = match &wanted.certificate {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let (chain, key) = identity(path, wanted.key.as_deref())?;
            let failed = |error| format!("the client certificate {} cannot be used: {error}", path.display());
            builder.with_client_auth_cert(chain, key).map_err(failed)?
        }
    };
    // PostgreSQL 17 and newer ask for it where TLS begins without a question (`sslnegotiation=direct`).
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(MakeRustlsConnect::new(config))
}

fn roots(wanted: &Wanted) -> Result<RootCertStore, String> {
    let own = wanted.home.as_ref().map(|home| home.join(".postgresql/root.crt")).filter(|path| path.exists());
    let path = match wanted.roots.as_deref() {
        Some("system") => None,
        Some(path) => Some(PathBuf::from(path)),
        None => own,
    };
    let mut roots = RootCertStore::empty();
    let Some(path) = path else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(
                "this system trusts no certificates: install ca-certificates, or name a file with sslrootcert".into()
            );
        }
        return Ok(roots);
    };
    for certificate in certificates(&path, "sslrootcert")? {
        let failed = |error| format!("sslrootcert {} has a certificate that cannot be used: {error}", path.display());
        roots.add(certificate).map_err(failed)?;
    }
    Ok(roots)
}

fn certificates(path: &Path, keyword: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{keyword} {} cannot be read: {error}", path.display());
    let found = CertificateDer::pem_file_iter(path).map_err(|error| failed(&error))?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(|error| failed(&error))?;
    if found.is_empty() { Err(failed(&"there is no certificate in it")) } else { Ok(found) }
}

/// The client's certificates and its key, which nobody else may read.
fn identity(
    certificate: &Path,
    key: Option<&Path>,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let path = key.ok_or("sslcert is given, and sslkey is not")?;
    let chain = certificates(certificate, "sslcert")?;
    if let Some(wrong) = pgpass::read_by_others(path) {
        return Err(format!("sslkey {} is not used: {wrong}", path.display()));
    }
    let key = PrivateKeyDer::from_pem_file(path);
    let key = key.map_err(|error| format!("sslkey {} cannot be read: {error}", path.display()))?;
    Ok((chain, key))
}

/// Verifies the chain, and the name unless it does not matter.
#[derive(Debug)]
struct Verifier {
    verifier: Arc<WebPkiServerVerifier>,
    any_name: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.verifier.verify_server_cert(certificate, chain, name, ocsp, now) {
            // The name is looked at last: the chain is good.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.any_name => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
