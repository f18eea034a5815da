//! The kernel's own announcements that links, addresses, routes, neighbours or nftables' rules changed, as one signal.
//!
//! Not here: what changed. Whoever hears the signal reads everything again, so a lost announcement costs nothing as
//! long as a later one comes, and any number of them is worth one.

use crate::{NetError, rules::nfnetlink};
use futures_util::StreamExt;
use netlink_packet_route::{RouteNetlinkMessage, neighbour::NeighbourState};
use rtnetlink::{
    MulticastGroup, new_multicast_connection,
    packet_core::NetlinkPayload,
    sys::{AsyncSocketExt, TokioSocket},
};
use tokio::{sync::mpsc, task::JoinSet};
use tracing::debug;

/// errno(3): the socket's buffer was full.
const ENOBUFS: i32 = 105;

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
];

/// A subscription to the kernel's changes. Dropping it ends it.
#[derive(Debug)]
pub struct Changes {
    signal: mpsc::Receiver<()>,
    /// The socket's reader and the task that folds its messages; both end with this.
    _tasks: JoinSet<()>,
}

impl Changes {
    pub(crate) fn subscribe() -> Result<Self, NetError> {
        let (connection, _, mut messages) = new_multicast_connection(&GROUPS).map_err(NetError::Socket)?;
        // One is enough: a signal that waits to be heard covers everything that happens until then.
        let (sender, signal) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        match nfnetlink::listen() {
            Ok(socket) => drop(tasks.spawn(hear_rules(socket, sender.clone()))),
            Err(error) => debug!(%error, "nftables' changes are not announced here"),
        }
        tasks.spawn(async move {
            while let Some((message, _)) = messages.next().await {
                if matters(&message.payload) && sender.try_send(()).is_err() && sender.is_closed() {
                    return;
                }
            }
        });
        Ok(Self { signal, _tasks: tasks })
    }

    /// Waits until something changed since the last call. `None` means that the subscription broke: subscribe
    /// again and read everything anew.
    pub async fn next(&mut self) -> Option<()> {
        self.signal.recv().await
    }
}

async fn hear_rules(socket: TokioSocket, sender: mpsc::Sender<()>) {
    loop {
        // More announcements than fit are as good as one.
        if let Err(error) = socket.recv_from_full().await
            && error.raw_os_error() != Some(ENOBUFS)
        {
            debug!(%error, "nftables' changes are not heard any more");
            return;
        }
        if sender.try_send(()).is_err() && sender.is_closed() {
            return;
        }
    }
}

/// All but the chatter of the neighbour cache: entries that the kernel itself confirms and forgets all the time.
/// An overrun matters most of all, because announcements were lost.
fn matters(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    use NeighbourState::{Delay, Incomplete, Probe, Reachable, Stale};
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(entry)) = payload else { return true };
    !matches!(entry.header.state, Reachable | Stale | Delay | Probe | Incomplete)
}
