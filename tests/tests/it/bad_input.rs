//! What Muster refuses: plainly, with an exit code, and with nothing stored.

use crate::{Lab, alone};
use lab::Output;

#[test]
fn mistakes_are_explained_and_change_nothing() {
    let _alone = alone();
    let cluster = Lab::up(1);
    let run = |script: &str| -> Output {
        cluster.m1().exec(&["sh", "-c", &format!("cd /root && {script}")]).expect("the shell runs")
    };
    let refused = |script: &str, code: u8, words: &[&str]| {
        let output = run(script);
        assert_eq!(output.code(), code, "{script}: {}{}", output.stdout, output.stderr);
        for word in words {
            assert!(output.stderr.contains(word), "{script} does not say {word:?}: {}", output.stderr);
        }
        assert_eq!(output.stdout, "", "{script} claims success");
    };
    let stored =
        || cluster.muster(&["list-unit-files", "--no-legend"]).expect("units are listed").lines().count();

    // File, line, column, remedy; before anything is stored, also of the good file beside it.
    run("printf '[Service]\\nExecStart=/bin/true\\n[X-Fleet]\\nMachineOf=web@\\n' >bad.service");
    run("printf '[Service]\\nExecStart=/bin/sleep infinity\\n' >good.service");
    refused("muster submit good.service bad.service", 1, &["bad.service:4:", "MachineOf", "^"]);
    refused("muster start bad.service", 1, &["bad.service:4:"]);
    // The API checks too, for clients of another kind.
    let body = r#"[{"name":"good.service","text":"[Service]\nExecStart=/bin/true\n"},{"name":"bad.service","text":"[Service]\n"}]"#;
    let answer = run(&format!(
        "curl --silent --unix-socket /run/muster/muster.sock http://x/v1/units --data '{body}'"
    ));
    assert!(
        answer.stdout.contains("\"code\":400") && answer.stdout.contains("bad.service:"),
        "{}",
        answer.stdout
    );
    assert_eq!(stored(), 0);

    // Names.
    refused("muster start nosuch", 1, &["unable to find unit nosuch.service"]);
    refused("muster stop nosuch", 1, &["nosuch.service does not exist"]);
    refused("muster destroy nosuch", 1, &["nosuch.service does not exist"]);
    refused("muster cat nosuch", 1, &["nosuch.service does not exist"]);
    refused("muster status nosuch", 1, &["nosuch.service does not exist"]);
    refused("muster submit nosuch.service", 1, &["there is no file nosuch.service"]);
    refused("muster start 'web@.mount'", 1, &["invalid unit type for template"]);
    refused("muster frobnicate", 2, &["unrecognized subcommand"]);
    refused("muster kv get /nosuch", 4, &["100: Key not found"]);
    assert_eq!(stored(), 0);

    // No machine fits: said machine by machine, and the unit waits.
    run(
        "printf '[Service]\\nExecStart=/bin/sleep infinity\\n[X-Fleet]\\nMachineMetadata=disk=ssd\\n' >picky.service",
    );
    refused("muster start picky.service", 1, &["no machine fits", "m1:", "disk=ssd"]);
    assert_eq!(stored(), 1);
    run("muster destroy picky");

    // A unit that fails says so and where to look.
    run("printf '[Service]\\nType=oneshot\\nExecStart=/bin/false\\n' >fails.service");
    refused("muster start fails.service", 1, &["failed", "muster status fails.service"]);
    let output = run("muster status fails.service");
    assert!(
        output.code() == 3 && output.stdout.contains("Active: failed"),
        "{}{}",
        output.stdout,
        output.stderr
    );

    // A template cannot run.
    run("printf '[Service]\\nExecStart=/bin/true\\n' >tpl@.service");
    refused("muster start tpl@.service", 1, &["cannot activate template"]);

    // A unit of the machine's own is not taken over.
    run("printf '[Service]\\nExecStart=/bin/sleep infinity\\n' >nginx.service");
    refused("muster start nginx.service", 1, &["this machine has a unit of that name already"]);

    // Nobody there.
    refused(
        "muster --endpoint unix:///run/nosuch.sock list-units",
        1,
        &["no Muster daemon answers at unix:///run/nosuch.sock"],
    );
    refused("muster kv --hub http://127.0.0.1:9 get /x", 1, &["http://127.0.0.1:9", "cannot be reached"]);
    refused("muster --endpoint nonsense list-units", 2, &["is no API endpoint"]);

    // A configuration with a mistake: place and field, and the daemon does not start.
    run("printf '[hub]\\nlisten = 5\\n' >bad.toml");
    refused("muster agent --config bad.toml", 1, &["bad.toml", "line 2"]);
    refused("muster config --config nosuch.toml", 1, &["nosuch.toml"]);
}
