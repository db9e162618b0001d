//! TLS: a certificate and its key.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::options::Tls;

/// What makes connections of a certificate.
///
/// # Errors
/// A file that cannot be read or is not what it should be, with its path; a key that is another certificate's.
pub fn acceptor(tls: &Tls) -> Result<TlsAcceptor, String> {
    let Tls { certificate, key } = tls;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_reader_iter(open(certificate)?).collect();
    let chain = chain.map_err(|error| format!("{}: {error}", certificate.display()))?;
    if chain.is_empty() {
        return Err(format!(
            "{}: there is no certificate in PEM",
            certificate.display()
        ));
    }
    let private = PrivateKeyDer::from_pem_reader(open(key)?)
        .map_err(|error| format!("{}: {error}", key.display()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(chain, private)
        });
    let mut config = config
        .map_err(|error| format!("{} and {}: {error}", certificate.display(), key.display()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn open(path: &Path) -> Result<File, String> {
    let named = |error: io::Error| format!("{}: {error}", path.display());
    File::open(path).map_err(named)
}
