//! TLS on the port, with certificates made here.

use crate::differential::Etcd;
use crate::{Fixture, config, etcdctl, refusal, soon};
use access::{Access, Login, Password};
use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, Permission, TlsOptions};
use hub::migrate::{Migration, migrate};
use hub::remote::Remote;
use hub::{Hub, HubConfig, HubError, TlsConfig};
use mvcc::PermissionKind;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::error::Error as _;
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

/// With the bearer's certificate, and logged in if there is a user.
fn access(url: &str, authority: &Authority, bearer: &str, user: Option<&str>) -> Access {
    authority.sign(bearer);
    let file = |name: String| authority.path(&name);
    let login = user.map(|user| Login { user: user.to_owned(), password: Password::Given("pw".to_owned()) });
    Access {
        endpoints: vec![url.to_owned()],
        ca: Some(file("ca.pem".to_owned())),
        identity: Some((file(format!("{bearer}.pem")), file(format!("{bearer}.key")))),
        login,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_replaced_are_used_from_the_next_connection_on() {
    let (dir, old, new) = (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
    let tls = old.config(true);
    let hub = start(dir.path(), tls.clone()).await;
    let url = format!("https://{}", hub.address());
    let (known, unknown) = (access(&url, &old, "ann", None), access(&url, &new, "ann", None));
    let first = soon(Remote::connect(known.clone())).await.unwrap();
    first.status().await.unwrap();
    let lets_in = async |access: &Access| match soon(Box::pin(Remote::connect(access.clone()))).await {
        Ok(remote) => soon(Box::pin(remote.status())).await.is_ok(),
        Err(_) => false,
    };
    assert!(!lets_in(&unknown).await);
    // Half of a new pair changes nothing.
    new.config(true);
    fs::copy(new.path("hub.pem"), &tls.cert).unwrap();
    assert!(lets_in(&known).await && !lets_in(&unknown).await);
    fs::copy(new.path("hub.key"), &tls.key).unwrap();
    fs::copy(new.path("ca.pem"), old.path("ca.pem.new")).unwrap();
    fs::rename(old.path("ca.pem.new"), tls.client_ca.unwrap()).unwrap();
    assert!(lets_in(&unknown).await);
    // Whoever was connected stays so.
    first.status().await.unwrap();
}

/// Keys from one server with certificates and users to another, as `muster hub migrate` moves them.
#[tokio::test(flavor = "multi_thread")]
async fn a_secured_hub_moves_into_a_secured_etcd() {
    let (here, there) = (Authority::new(), Authority::new());
    let (dir, etcd_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = start(dir.path(), here.config(true)).await;
    there.config(true);
    let (cert, key, ca) = (there.path("hub.pem"), there.path("hub.key"), there.path("ca.pem"));
    let etcd = Etcd::start_tls(etcd_dir.path(), &cert, &key, &ca, there.bearer("probe")).await;
    let (from, to) = (format!("https://{}", hub.address()), format!("https://{}", etcd.address));
    for (url, authority) in [(&from, &here), (&to, &there)] {
        // As long as nobody is a user, everybody is let in, also who would log in.
        let root = Remote::connect(access(url, authority, "machine", Some("root"))).await.unwrap();
        root.add_user("root", Some("pw".to_owned())).await.unwrap();
        root.add_user("ann", Some("pw".to_owned())).await.unwrap();
        root.grant_role("root", "root").await.unwrap();
        root.add_role("none").await.unwrap();
        let permission =
            mvcc::Permission { kind: PermissionKind::ReadWrite, key: "b".into(), range_end: "c".into() };
        root.grant_permission("none", permission.clone()).await.unwrap();
        root.grant_role("ann", "none").await.unwrap();
        root.enable_users().await.unwrap();
        let root = Remote::connect(access(url, authority, "machine", Some("root"))).await.unwrap();
        assert_eq!(root.users().await.unwrap(), ["ann", "root"]);
        assert_eq!(
            (root.user("ann").await.unwrap(), root.roles().await.unwrap().len()),
            (vec!["none".to_owned()], 1)
        );
        assert_eq!(root.role("none").await.unwrap(), [permission]);
        root.change_password("ann", "other".to_owned()).await.unwrap();
        let ann =
            Remote::connect(access(url, authority, "machine", Some("ann"))).await.map(drop).unwrap_err();
        let said = ann.source().unwrap().to_string();
        assert!(said.contains("invalid user ID or password: check `user`"), "{said}");
        root.revoke_permission("none", b"b", b"c").await.unwrap();
        root.revoke_role("ann", "none").await.unwrap();
        root.delete_role("none").await.unwrap();
        root.delete_user("ann").await.unwrap();
        assert_eq!(root.users().await.unwrap(), ["root"]);
    }
    let as_root = |url: &str, authority| Remote::connect(access(url, authority, "machine", Some("root")));
    let (source, target) = (as_root(&from, &here).await.unwrap(), as_root(&to, &there).await.unwrap());
    let options = ConnectOptions::new().with_tls(here.bearer("root"));
    let mut client = Client::connect([&from], Some(options)).await.unwrap();
    for key in 0..100 {
        client.put(format!("k{key}"), "1", None).await.unwrap();
    }
    let proof = soon(Box::pin(migrate(&source, &target, &Migration::default(), |_| {}))).await.unwrap();
    assert_eq!(proof.keys, 100);
    // As nobody it is refused, in words that help.
    let nobody = Remote::connect(access(&from, &here, "machine", None)).await.unwrap();
    let error = nobody.revision().await.unwrap_err();
    assert!(error.source().unwrap().to_string().contains("permission denied"), "{error:?}");
    let mut bare = access(&from, &here, "machine", None);
    bare.identity = None;
    let bare = Remote::connect(bare).await.unwrap();
    let error = soon(bare.revision()).await.unwrap_err();
    assert!(error.source().unwrap().to_string().contains("--cert and --key"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_of_no_use_are_named() {
    let authority = Authority::new();
    let good = authority.config(false);
    let missing = TlsConfig { cert: authority.path("nothing.pem"), ..good.clone() };
    let swapped = TlsConfig { cert: good.key.clone(), key: good.cert.clone(), client_ca: None };
    authority.sign("other");
    let mismatched = TlsConfig { key: authority.path("other.key"), ..good.clone() };
    for (tls, file) in
        [(missing, "nothing.pem"), (swapped, "hub.key"), (mismatched, "other.key does not belong to")]
    {
        let fixture = tempfile::tempdir().unwrap();
        let error = Hub::start(HubConfig { tls: Some(tls), ..config(fixture.path()) }).await.unwrap_err();
        assert!(matches!(error, HubError::Tls(_)), "{error:?}");
        assert!(error.to_string().contains(file), "{error}");
    }
    // Without TLS it is as it was.
    Fixture::start().await.client().await.put("a", "1", None).await.unwrap();
}
