//! TLS on the port, with certificates made here.

use crate::differential::Etcd;
use crate::{Fixture, config, etcdctl, refusal, soon};
use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, Permission, TlsOptions};
use hub::{Hub, HubConfig, HubError, TlsConfig};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// An authority and what it signed, as files.
struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        fs::write(dir.path().join("ca.pem"), &pem).unwrap();
        Self { dir, issuer: Issuer::new(params, key), pem }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A certificate and its key; both also as `name.pem` and `name.key`.
    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let hosts = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        fs::write(self.path(&format!("{name}.pem")), &certificate).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        (certificate, key.serialize_pem())
    }

    fn config(&self, client_ca: bool) -> TlsConfig {
        self.sign("hub");
        TlsConfig {
            cert: self.path("hub.pem"),
            key: self.path("hub.key"),
            client_ca: client_ca.then(|| self.path("ca.pem")),
        }
    }

    fn options(&self) -> TlsOptions {
        TlsOptions::new().ca_certificate(Certificate::from_pem(&self.pem))
    }

    /// As the bearer of a certificate.
    fn bearer(&self, name: &str) -> TlsOptions {
        let (certificate, key) = self.sign(name);
        self.options().identity(Identity::from_pem(certificate, key))
    }
}

async fn start(dir: &Path, tls: TlsConfig) -> Hub {
    Hub::start(HubConfig { tls: Some(tls), ..config(dir) }).await.unwrap()
}

async fn connect(hub: &Hub, options: ConnectOptions) -> Result<Client, Error> {
    let client = Client::connect([format!("https://{}", hub.address())], Some(options)).await?;
    client.clone().status().await?; // connects only now
    Ok(client)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_speaks_tls_and_nothing_else() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let hub = start(dir.path(), authority.config(false)).await;
    // Someone who never shakes hands is in nobody's way.
    let silent = tokio::net::TcpStream::connect(hub.address()).await.unwrap();
    let options = ConnectOptions::new().with_tls(authority.options());
    let mut client = soon(Box::pin(connect(&hub, options))).await.unwrap();
    client.put("a", "1", None).await.unwrap();
    assert_eq!(client.get("a", None).await.unwrap().count(), 1);
    let members = client.member_list().await.unwrap();
    assert_eq!(members.members()[0].client_urls(), [format!("https://{}", hub.address())]);
    drop(silent);
    // Neither plain text nor an authority of somebody else.
    let mut plain = Client::connect([hub.address().to_string()], None).await.unwrap();
    assert!(soon(plain.get("a", None)).await.is_err());
    let other = ConnectOptions::new().with_tls(Authority::new().options());
    assert!(soon(Box::pin(connect(&hub, other))).await.is_err());
    // Nor etcdctl without the authority; with it, yes.
    let url = format!("https://{}", hub.address());
    let ca = format!("--cacert={}", authority.path("ca.pem").display());
    let output = etcdctl::output(etcdctl::start(etcdctl::command_at(&url, &[&ca, "get", "a"]))).await;
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "a\n1\n");
}

/// What the bearers of certificates may, on a server where ann may read and write `a`.
async fn story(url: &str, authority: &Authority) -> Vec<String> {
    let mut told = Vec::new();
    let bearer = |name| {
        let options = ConnectOptions::new().with_tls(authority.bearer(name));
        async move { Client::connect([url], Some(options)).await.unwrap() }
    };
    let mut root = bearer("root").await;
    for user in ["root", "ann"] {
        root.user_add(user, "pw", None).await.unwrap();
    }
    root.role_add("r").await.unwrap();
    root.role_grant_permission("r", Permission::read_write("a")).await.unwrap();
    root.user_grant_role("ann", "r").await.unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.auth_enable().await.unwrap();
    root.put("b", "1", None).await.unwrap();
    let mut ann = bearer("ann").await;
    ann.put("a", "1", None).await.unwrap();
    told.push(format!("{:?}", refusal(ann.get("b", None).await)));
    told.push(format!("{:?}", refusal(ann.user_list().await)));
    let mut stranger = bearer("stranger").await;
    told.push(format!("{:?}", refusal(stranger.get("a", None).await)));
    told.push(format!("{:?}", refusal(stranger.user_list().await)));
    // A login goes before the certificate.
    let options = ConnectOptions::new().with_tls(authority.bearer("stranger")).with_user("ann", "pw");
    let mut ann = Client::connect([url], Some(options)).await.unwrap();
    told.push(format!("{}", ann.get("a", None).await.unwrap().count()));
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_a_user() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let hub = start(dir.path(), authority.config(true)).await;
    let without = ConnectOptions::new().with_tls(authority.options());
    assert!(soon(Box::pin(connect(&hub, without))).await.is_err());
    let strangers = Authority::new();
    let (certificate, key) = strangers.sign("root");
    let forged = authority.options().identity(Identity::from_pem(certificate, key));
    assert!(soon(Box::pin(connect(&hub, ConnectOptions::new().with_tls(forged)))).await.is_err());
    let told = soon(Box::pin(story(&format!("https://{}", hub.address()), &authority))).await;

    let etcd_dir = tempfile::tempdir().unwrap();
    let (cert, key, ca) = (authority.path("hub.pem"), authority.path("hub.key"), authority.path("ca.pem"));
    let etcd = Etcd::start_tls(etcd_dir.path(), &cert, &key, &ca, authority.bearer("probe")).await;
    let real = soon(Box::pin(story(&format!("https://{}", etcd.address), &authority))).await;
    assert_eq!(told, real, "the hub (left) and etcd (right) differ");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_of_no_use_are_named() {
    let authority = Authority::new();
    let good = authority.config(false);
    let missing = TlsConfig { cert: authority.path("nothing.pem"), ..good.clone() };
    let swapped = TlsConfig { cert: good.key.clone(), key: good.cert.clone(), client_ca: None };
    authority.sign("other");
    let mismatched = TlsConfig { key: authority.path("other.key"), ..good.clone() };
    for (tls, file) in [(missing, "nothing.pem"), (swapped, "hub.key"), (mismatched, "hub.pem")] {
        let fixture = tempfile::tempdir().unwrap();
        let error = Hub::start(HubConfig { tls: Some(tls), ..config(fixture.path()) }).await.unwrap_err();
        assert!(matches!(error, HubError::TlsFile { .. } | HubError::Tls { .. }), "{error:?}");
        assert!(error.to_string().contains(file), "{error}");
    }
    // Without TLS it is as it was.
    Fixture::start().await.client().await.put("a", "1", None).await.unwrap();
}
