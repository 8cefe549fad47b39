//! Encrypted connections to database servers: whom to believe.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use super::{RequestError, Result, StoreError};

/// The authorities that a server's certificate may come from: those in `file` (PEM), or, if there is
/// none, those that the system trusts (also through `SSL_CERT_FILE` and `SSL_CERT_DIR`). Never empty.
pub async fn roots(file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>> {
    let file = file.map(Path::to_owned);
    let read = tokio::task::spawn_blocking(move || match &file {
        Some(file) => from_file(file),
        None => from_system(),
    });
    let read = read.await;
    read.map_err(|err| StoreError::Broken(err.to_string()))?
}

/// Those of `roots` that can be read: a system has some odd ones, and a driver that cannot read one
/// takes none.
pub fn readable(
    roots: Vec<CertificateDer<'static>>,
) -> impl Iterator<Item = CertificateDer<'static>> {
    let mut store = RootCertStore::empty();
    roots
        .into_iter()
        .filter(move |root| store.add(root.clone()).is_ok())
}

/// How to make sure that it is the right server that answers, and that nobody else listens.
pub async fn client_config(file: Option<&Path>) -> Result<ClientConfig> {
    let mut store = RootCertStore::empty();
    let (good, _) = store.add_parsable_certificates(roots(file).await?);
    if good == 0 {
        return Err(unusable(
            file,
            "no certificate in it is one of an authority",
        ));
    }
    // Named, and not left to the process: a program that has another one as well would panic.
    let provider = rustls::crypto::ring::default_provider();
    let config = ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .map_err(|err| StoreError::Broken(err.to_string()))?;
    Ok(config.with_root_certificates(store).with_no_client_auth())
}

fn from_file(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|err| unusable(Some(file), &err.to_string()))?;
    if certificates.is_empty() {
        return Err(unusable(Some(file), "no certificate (PEM) is in it"));
    }
    Ok(certificates)
}

fn from_system() -> Result<Vec<CertificateDer<'static>>> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        let why = match why.as_slice() {
            [] => "none are installed".to_owned(),
            why => why.join("; "),
        };
        return Err(unusable(None, &why));
    }
    Ok(found.certs)
}

fn unusable(file: Option<&Path>, why: &str) -> StoreError {
    let what = match file {
        Some(file) => format!("the certificates in {} cannot be used", file.display()),
        None => "the system's trusted certificates cannot be used".to_owned(),
    };
    RequestError::Unacceptable(format!(
        "{what}: {why}. Name a file (PEM) with the certificate of the authority that has signed the \
         server's, with sslrootcert=PATH (PostgreSQL) or ssl-ca=PATH (MySQL, MariaDB)"
    ))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made for this test: `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes
    /// -days 36500 -subj /CN=test`.
    const AUTHORITY: &str = "\
-----BEGIN CERTIFICATE-----
MIIBdjCCARugAwIBAgIUaKFjKVwTOwAdrnC9oSfJT8+WEMswCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjExMTUyNTRaGA8yMTI2MTAyODExNTI1
NFowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABBSw
9NHQnBlknhMGPvtHj6X4HVryTb/iRe2cfvT7+cRO94riCucjF7BsaIDOTNwcRi1O
YViyJNZZKDDhnGB4tCqjUzBRMB0GA1UdDgQWBBSI4FGyMpFrYtv0LoRuomJAY8PQ
5zAfBgNVHSMEGDAWgBSI4FGyMpFrYtv0LoRuomJAY8PQ5zAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0kAMEYCIQDyUL6Z2AiF3lMs/Z7BISzpMVZCAhKJUng+
DmPHtqgB3wIhALBvaHa83qHVmUov8Wx92hlO9e6zSetbMscoA/8Vc1+V
-----END CERTIFICATE-----
";

    #[tokio::test]
    async fn authorities_come_from_the_file_that_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{AUTHORITY}{AUTHORITY}")).unwrap();
        assert_eq!(roots(Some(file.path())).await.unwrap().len(), 2);
        client_config(Some(file.path())).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_without_authorities_is_told_of() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let broken = AUTHORITY.replace("MII", "???");
        for (text, hint) in [
            ("", "no certificate (PEM)"),
            ("hello", "no certificate (PEM)"),
            (broken.as_str(), "cannot be used"),
        ] {
            std::fs::write(file.path(), text).unwrap();
            let error = roots(Some(file.path())).await.unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
            assert!(error.contains("sslrootcert=PATH"), "{error}");
        }
        let error = roots(Some(Path::new("/no/such/file"))).await.unwrap_err();
        assert!(error.to_string().contains("/no/such/file"), "{error}");
    }
}
