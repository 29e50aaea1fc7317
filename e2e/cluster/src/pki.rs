//! The cluster's certificates and kubeconfigs: one authority, a client
//! certificate for each component, and for each kubelet one of the group
//! `system:nodes`, as a production cluster has them.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};

use crate::error::{Error, IoContext, Result};

/// The certificate authority, in a directory.
#[derive(Debug, Clone)]
pub(crate) struct Pki {
    dir: PathBuf,
}

/// A certificate for a client and a server, in PEM.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

fn failed(subject: &str) -> impl Fn(rcgen::Error) -> Error + use<'_> {
    move |source| Error::Certificate {
        subject: subject.to_owned(),
        source,
    }
}

impl Pki {
    pub(crate) fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Makes the authority and the key that signs service account tokens.
    pub(crate) fn create(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir).what(|| format!("make {}", dir.display()))?;
        let name = "veer-e2e";
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = KeyPair::generate().map_err(failed(name))?;
        let key_pem = key.serialize_pem();
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(failed(name))?;
        write_secret(&dir.join("ca.crt"), &issuer.pem())?;
        write_secret(&dir.join("ca.key"), &key_pem)?;
        let service_accounts = KeyPair::generate().map_err(failed("service accounts"))?;
        write_secret(&dir.join("sa.key"), &service_accounts.serialize_pem())?;
        write_secret(&dir.join("sa.pub"), &service_accounts.public_key_pem())?;
        Ok(Self { dir })
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    pub(crate) fn authority(&self) -> Result<String> {
        read(&self.dir.join("ca.crt"))
    }

    /// Issues a certificate for common name `name` in `group`.
    pub(crate) fn issue(
        &self,
        name: &str,
        group: Option<&str>,
        addresses: &[IpAddr],
        names: &[&str],
    ) -> Result<Issued> {
        let ca_key = KeyPair::from_pem(&read(&self.dir.join("ca.key"))?).map_err(failed(name))?;
        let mut ca = CertificateParams::default();
        // What a signature takes of the authority is its name and its key.
        ca.distinguished_name.push(DnType::CommonName, "veer-e2e");
        let issuer = Issuer::new(ca, ca_key);
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            params
                .distinguished_name
                .push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        params.subject_alt_names = addresses.iter().map(|a| SanType::IpAddress(*a)).collect();
        for dns in names {
            let dns = (*dns).try_into().map_err(failed(name))?;
            params.subject_alt_names.push(SanType::DnsName(dns));
        }
        let key = KeyPair::generate().map_err(failed(name))?;
        let certificate = params.signed_by(&key, &issuer).map_err(failed(name))?;
        Ok(Issued {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Issues a certificate into `dir/<file>.crt` and `.key`.
    pub(crate) fn issue_to(
        &self,
        dir: &Path,
        file: &str,
        name: &str,
        group: Option<&str>,
        addresses: &[IpAddr],
        names: &[&str],
    ) -> Result<()> {
        let issued = self.issue(name, group, addresses, names)?;
        write_secret(&dir.join(format!("{file}.crt")), &issued.certificate)?;
        write_secret(&dir.join(format!("{file}.key")), &issued.key)
    }

    /// Writes a kubeconfig by which `name` in `group` speaks to `server`.
    pub(crate) fn kubeconfig(
        &self,
        path: &Path,
        server: &str,
        name: &str,
        group: Option<&str>,
    ) -> Result<()> {
        let issued = self.issue(name, group, &[], &[])?;
        let json = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "veer-e2e", "cluster": {
                "server": server,
                "certificate-authority-data": base64(self.authority()?.as_bytes()),
            }}],
            "users": [{"name": name, "user": {
                "client-certificate-data": base64(issued.certificate.as_bytes()),
                "client-key-data": base64(issued.key.as_bytes()),
            }}],
            "contexts": [{"name": "veer-e2e", "context": {"cluster": "veer-e2e", "user": name}}],
            "current-context": "veer-e2e",
        });
        // JSON is YAML.
        write_secret(path, &json.to_string())
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).what(|| format!("read {}", path.display()))
}

/// Writes a file that only root reads.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).what(|| format!("make {}", dir.display()))?;
    }
    fs::write(path, text).what(|| format!("write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .what(|| format!("protect {}", path.display()))
}

/// Base 64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk
            .iter()
            .fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..4 {
            if place <= chunk.len() {
                let digit = (bits >> (18 - 6 * place)) & 63;
                text.push(char::from(DIGITS[digit as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfc_examples() {
        let examples = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, encoded) in examples {
            assert_eq!(base64(plain.as_bytes()), encoded, "of {plain:?}");
        }
    }

    #[test]
    fn a_certificate_verifies_against_the_authority() {
        let dir = tempfile::tempdir().expect("a directory");
        let pki = Pki::create(dir.path().to_owned()).expect("an authority");
        pki.issue_to(
            dir.path(),
            "node",
            "system:node:a",
            Some("system:nodes"),
            &[],
            &["a"],
        )
        .expect("a certificate");
        let ca = dir.path().join("ca.crt");
        let leaf = dir.path().join("node.crt");
        let out = std::process::Command::new("openssl")
            .args(["verify", "-CAfile"])
            .arg(ca)
            .arg(leaf)
            .output()
            .expect("openssl runs");
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
}
