//! Resource files and templates as confd's users have them, and the templates that come with Muster, checked by the
//! programs that they are for.

use muster_core::router::Catalog;
use render::{Applied, Data, KeyTree, Resource, ResourceError};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn catalog() -> Catalog {
    Catalog::from_listing([("/services/someapp/upstream/a@1", &b"10.1.5.2:3000"[..])])
}

/// The hub's keys, as a resource sees them.
fn keys(resource: &Resource) -> KeyTree {
    let hub = [
        ("/myapp/database/url", "db.example.com"),
        ("/myapp/database/user", "rob"),
        ("/myapp/flags/debug", "true"),
        ("/myapp/json", r#"{"name":"x","list":[1,2]}"#),
        ("/myapp/upstream/app2", "10.0.1.11:8080"),
        ("/myapp/upstream/app1", "10.0.1.10:8080"),
    ];
    let prefixes = resource.prefixes();
    let asked = |key: &str| prefixes.iter().any(|prefix| key.starts_with(prefix.as_str()));
    let named = |key: &str| key[resource.root().len()..].to_owned();
    let tree: BTreeMap<_, _> = hub
        .iter()
        .filter(|(key, _)| asked(key))
        .map(|(key, value)| (named(key), (*value).to_owned()))
        .collect();
    Arc::new(tree)
}

#[test]
fn confds_resources_give_what_they_gave() {
    let found = Resource::read_all(&golden()).expect("readable");
    assert_eq!(found.len(), 2);
    for (path, resource) in found {
        let resource = resource.expect("valid");
        let engine =
            resource.engine(&path.display().to_string(), &[golden().join("templates")]).expect("parses");
        let text = engine.render(&Data::new(&catalog(), keys(&resource))).expect("renders");
        let expected = golden().join("expected").join(resource.dest.file_name().expect("a name"));
        let expected = std::fs::read_to_string(expected).expect("readable");
        assert_eq!(text, expected, "{}", path.display());
    }
}

#[tokio::test]
async fn a_resource_is_checked_written_and_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let dest = directory.path().join("app.conf");
    let mut resource = Resource::read(&golden().join("conf.d/app.toml")).expect("valid");
    resource.dest = dest.clone();
    resource.reload_cmd = Some(format!("cp {{{{ .dest }}}} {}", directory.path().join("told").display()));
    let templates = [golden().join("templates")];
    let data = Data::new(&catalog(), keys(&resource));
    let mut engine = resource.engine("app", &templates).expect("parses");
    assert_eq!(engine.apply(&data).await.expect("applied").applied, Applied::Changed);
    assert_eq!(engine.apply(&data).await.expect("applied").applied, Applied::Unchanged);
    let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).expect("there");
    assert_eq!(read("told"), read("app.conf"));
    // A key that is missing is an error that names the place, and the file stays.
    let error = engine.apply(&Data::default()).await.expect_err("no keys").to_string();
    assert!(error.contains("app.conf.tmpl:2: ") && error.contains("/database/url does not exist"), "{error}");
    assert_eq!(read("told"), read("app.conf"));
}

#[test]
fn mistakes_name_their_place() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("bad.toml");
    let said = |text: &str| {
        std::fs::write(&path, text).expect("written");
        let error = Resource::read(&path).and_then(|resource| resource.engine("bad.toml", &[]).map(drop));
        error.expect_err(text).to_string()
    };
    let error = said("[template]\nsrc = \"x\"\ndst = \"/y\"\n");
    assert!(error.contains("bad.toml") && error.contains("line 3") && error.contains("dst"), "{error}");
    assert!(said("[template]\ndest = \"/y\"\n").contains("`src` is missing"));
    assert!(said("[template]\nsrc = \"x\"\ndest = \"y\"\n").contains("absolute path"));
    assert!(said("[template]\nsrc = \"x\"\ndest = \"/y\"\n").contains("its template `x` is not there"));
    assert!(said("[template]\nsrc = \"builtin:x\"\ndest = \"/y\"\n").contains("builtin:haproxy"));
    assert!(said("[template]\nsrc = \"x\"\ndest = \"/y\"\nmode = \"9\"\n").contains("octal"));
    assert!(said("[template]\nsrc = \"x\"\ndest = \"/y\"\nowner = \"no-such\"\n").contains("no-such"));
    std::fs::write(directory.path().join("t"), "a\n{% if %}\n").expect("written");
    let resource = Resource { src: "t".to_owned(), dest: "/y".into(), ..Resource::default() };
    let error = resource.engine("r", &[directory.path().to_owned()]).err().expect("a syntax error");
    assert!(matches!(&error, ResourceError::Template(_)) && error.to_string().contains("t:2: "), "{error}");
}

/// Catalogs that have all that the templates distinguish.
fn catalogs() -> [Catalog; 3] {
    let meta = r#"{"v":1,"addr":"10.1.5.2:3000","machine":"0123456789abcdef0123456789abcdef","unit":"a@1.service","started":0,"weight":50}"#;
    let several = Catalog::from_listing([
        ("/services/someapp/upstream/a@1", &b"10.1.5.2:3000"[..]),
        ("/services/someapp/meta/a@1", meta.as_bytes()),
        ("/services/someapp/upstream/a@2", b"10.1.6.2:3000"),
        (
            "/services/someapp/config",
            br#"{"hosts":["app.example.com"],"balance":"least-conn","timeout":"5s"}"#,
        ),
        ("/services/web/upstream/w", b"10.1.7.2:80"),
        ("/services/web/config", br#"{"balance":"hash:ip"}"#),
    ]);
    [Catalog::default(), catalog(), several]
}

fn builtin(name: &str, catalog: &Catalog, directory: &Path) -> PathBuf {
    let dest = directory.join(name);
    let resource = Resource { src: format!("builtin:{name}"), dest: dest.clone(), ..Resource::default() };
    let engine = resource.engine(name, &[]).expect("parses");
    let text = engine.render(&Data::new(catalog, KeyTree::default())).expect("renders");
    std::fs::write(&dest, text).expect("written");
    dest
}

#[test]
fn haproxy_takes_its_template() {
    const PROGRAM: &str = "/usr/sbin/haproxy";
    assert!(Path::new(PROGRAM).exists(), "this test needs haproxy: run bin/setup");
    let directory = tempfile::tempdir().expect("a directory");
    for catalog in catalogs() {
        let file = builtin("haproxy", &catalog, directory.path());
        let output = Command::new(PROGRAM).args(["-c", "-f"]).arg(&file).output().expect("haproxy runs");
        let said = String::from_utf8_lossy(&output.stderr);
        let text = std::fs::read_to_string(&file).expect("readable");
        assert!(output.status.success() && !said.contains("[WARNING]"), "{said}\n{text}");
    }
}

#[test]
fn prometheus_takes_its_template() {
    let directory = tempfile::tempdir().expect("a directory");
    for (catalog, expected) in catalogs().iter().zip([0, 1, 3]) {
        let file = builtin("prometheus", catalog, directory.path());
        let text = std::fs::read_to_string(&file).expect("readable");
        let targets: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(targets.as_array().map(Vec::len), Some(expected), "{text}");
        let promtool = Path::new("/usr/bin/promtool");
        if promtool.exists() {
            let named = directory.path().join("targets.json");
            std::fs::copy(&file, &named).expect("copied");
            let config = directory.path().join("prometheus.yml");
            let text = format!(
                "scrape_configs:\n- job_name: muster\n  file_sd_configs:\n  - files: ['{}']\n",
                named.display()
            );
            std::fs::write(&config, text).expect("written");
            let output =
                Command::new(promtool).args(["check", "config"]).arg(&config).output().expect("it runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        } else {
            eprintln!(
                "SKIPPED: promtool is not here, so that only the JSON was looked at (apt-get install prometheus)"
            );
        }
    }
}
