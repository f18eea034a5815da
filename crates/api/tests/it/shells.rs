//! Shells over the API: both directions at once, on the machine that was asked and on another behind it.

use crate::{
    memory::{IDS, Server, serve},
    raw::ask,
};
use api::{
    Client, Endpoint,
    frames::Frame,
    types::{Run, Shell},
};
use futures_util::StreamExt;
use model::MachineId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

fn id(number: usize) -> MachineId {
    IDS[number].parse().expect("valid")
}

/// The first machine, and the second behind it, which knows itself as a first one.
async fn two() -> (Server, Server) {
    let (front, back) = (serve().await, serve().await);
    front.memory.other_is(back.tcp);
    (front, back)
}

async fn talk(client: &Client, machine: &MachineId) {
    let (sender, input) = mpsc::channel(8);
    let begin = Frame::Begin(Shell { command: Some("x".to_owned()), tty: None });
    sender.send(begin).await.expect("there is room");
    let mut output = client.shell(machine, ReceiverStream::new(input)).await.expect("it opens");
    let mut next = async || output.next().await.expect("it goes on").expect("it is a frame");
    assert_eq!(next().await, Frame::Stdout("Some(\"x\")".into()));
    // Each answer comes before the next question: nothing is held back.
    for word in ["one", "two"] {
        sender.send(Frame::Stdin(word.into())).await.expect("it is open");
        assert_eq!(next().await, Frame::Stdout(word.into()));
    }
    sender.send(Frame::Size(5, 6)).await.expect("it is open");
    assert_eq!(next().await, Frame::Stderr("5x6".into()));
    sender.send(Frame::Stdin("stop".into())).await.expect("it is open");
    assert_eq!(next().await, Frame::Exit(4));
}

#[tokio::test]
async fn a_shell_talks_both_ways_on_every_transport() {
    let server = serve().await;
    let socket = match &server.sockets[1] {
        crate::raw::Socket::Unix(path) => path.clone(),
        crate::raw::Socket::Tcp(_) => panic!("the second is a unix socket"),
    };
    // The far end of a tunnel, as far as the client can tell.
    let program = ["socat", "-", &format!("UNIX-CONNECT:{}", socket.display())].map(str::to_owned).to_vec();
    let mut endpoints = vec![Endpoint::Tcp(server.tcp), Endpoint::Unix(socket)];
    match std::process::Command::new("socat").arg("-V").output() {
        Ok(_) => endpoints.push(Endpoint::Program(program)),
        Err(_) => eprintln!("SKIPPED: no socat here; the tunnel is tested in the lab"),
    }
    for endpoint in endpoints {
        talk(&Client::new(endpoint), &id(0)).await;
    }
}

#[tokio::test]
async fn requests_that_are_passed_on_are_not_passed_on_again() {
    let (front, back) = two().await;
    let client = Client::new(Endpoint::Tcp(front.tcp));
    // The second machine calls itself another than was asked for: somebody has its address.
    let (sender, input) = mpsc::channel(1);
    sender.send(Frame::Begin(Shell { command: None, tty: None })).await.expect("there is room");
    let Err(error) = client.shell(&id(1), ReceiverStream::new(input)).await else { panic!("it opened") };
    assert!(error.to_string().contains("is not present"), "{error}");
    back.memory.other_is(front.tcp);
    let unit = "a.service".parse().expect("a name");
    let Err(error) = client.run_there(&id(1), &unit, &Run::Status).await else { panic!("it ran") };
    assert!(error.to_string().contains("another machine has the address"), "{error}");
}

#[tokio::test]
async fn what_is_no_shell_is_refused() {
    let server = serve().await;
    let socket = &server.sockets[0];
    let here = format!("/v1/machines/{}/shell", IDS[0]);
    for (path, body, status, words) in [
        (here.as_str(), "", 400, "the first frame must say what to run"),
        (here.as_str(), "nonsense, and longer than a header", 400, "the first frame must say what to run"),
        ("/v1/machines/nobody/shell", "", 400, "is no machine-id"),
        ("/v1/machines/00000000000000000000000000000000/shell", "", 404, "is not present"),
    ] {
        let answer = ask(socket, "POST", path, &[], body).await;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert!(answer.message().contains(words), "{path}: {answer:?}");
    }
}
