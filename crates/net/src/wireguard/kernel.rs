//! WireGuard in the kernel: the link by rtnetlink, its key and its peers by generic netlink.
//!
//! What to tell the kernel is computed in `messages`, which knows no socket. NOT TESTED ON A KERNEL: the box on which
//! this was written has no WireGuard module, so only the probe (a kernel without it says so) and the messages'
//! attributes are tested. Whoever has one: `crates/net/tests/it/wireguard.rs` with `Prefer::Kernel`.
//!
//! Invariant: a peer that stays the same is not mentioned to the kernel, so that its session and its endpoint stay.

use crate::{
    NetError,
    wireguard::{WgPeer, WgPeerState, WireguardConfig},
};
use futures_util::{Stream, StreamExt, TryStreamExt};
use netlink_packet_generic::{
    GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_wireguard::WireguardMessage;
use rtnetlink::{
    LinkUnspec, LinkWireguard, new_connection,
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload,
        NetlinkSerializable,
    },
    proto::{self, ConnectionHandle},
    sys::{SocketAddr as NetlinkAddr, protocols::NETLINK_GENERIC},
};
use std::{fmt::Debug, io, time::Duration, time::SystemTime};
use tokio::task::JoinSet;
use tracing::info;

mod messages;

/// The kernel answers at once, or it is busy with something that holds its network lock.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Device {
    config: WireguardConfig,
    index: u32,
    handle: ConnectionHandle<GenlMessage<WireguardMessage>>,
    family: u16,
    /// What the kernel was told, or had when the device was taken over.
    told: Vec<WgPeer>,
    /// The socket's reader; it ends with this.
    _reader: JoinSet<()>,
}

impl Device {
    /// Makes the device, or takes over the one there is. `None`: this kernel has no WireGuard.
    pub(super) async fn open(config: &WireguardConfig) -> Result<Option<Self>, NetError> {
        let Some(index) = link(config).await? else { return Ok(None) };
        let family = family().await?;
        let (connection, handle, _) = proto::new_connection(NETLINK_GENERIC).map_err(NetError::Socket)?;
        let mut reader = JoinSet::new();
        reader.spawn(connection);
        let mut device =
            Self { config: config.clone(), index, handle, family, told: Vec::new(), _reader: reader };
        device.tell(messages::device(config)).await?;
        device.told = messages::peers(&device.ask().await?);
        info!(device = config.name, port = config.listen_port, "WireGuard runs in the kernel");
        Ok(Some(device))
    }

    pub(super) async fn set_peers(&mut self, wanted: &[WgPeer]) -> Result<(), NetError> {
        let psk = self.config.psk.as_ref();
        for message in messages::change(&self.config.name, &self.told, wanted, psk) {
            if let Err(error) = self.tell(message).await {
                // What it took of them it says itself.
                self.told = messages::peers(&self.ask().await?);
                return Err(error);
            }
        }
        self.told = wanted.to_vec();
        Ok(())
    }

    pub(super) async fn peers(&self) -> Result<Vec<WgPeerState>, NetError> {
        Ok(messages::states(&self.ask().await?, SystemTime::now()))
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    async fn tell(&self, message: WireguardMessage) -> Result<(), NetError> {
        let action = format!("configure the WireGuard device {}", self.config.name);
        let answers = self.request(message, NLM_F_REQUEST | NLM_F_ACK, &action)?;
        collect(answers, &action).await.map(drop)
    }

    async fn ask(&self) -> Result<Vec<WireguardMessage>, NetError> {
        let action = format!("read the WireGuard device {}", self.config.name);
        let answers =
            self.request(messages::question(&self.config.name), NLM_F_REQUEST | NLM_F_DUMP, &action)?;
        Ok(collect(answers, &action).await?.into_iter().map(|message| message.payload).collect())
    }

    fn request(
        &self,
        message: WireguardMessage,
        flags: u16,
        action: &str,
    ) -> Result<impl Stream<Item = NetlinkMessage<GenlMessage<WireguardMessage>>> + use<>, NetError> {
        let mut message = GenlMessage::from_payload(message);
        message.set_resolved_family_id(self.family);
        request(&self.handle, message, flags, action)
    }
}

/// The index of the link, which is there and up afterwards. `None`: this kernel has no such kind.
async fn link(config: &WireguardConfig) -> Result<Option<u32>, NetError> {
    let refused = |action: String, error| match error {
        rtnetlink::Error::NetlinkError(error) => NetError::Refused { action, source: error.to_io() },
        other => NetError::Netlink { action, reason: other.to_string() },
    };
    let (connection, handle, _) = new_connection().map_err(NetError::Socket)?;
    let mut reader = JoinSet::new();
    reader.spawn(connection);
    let name = &config.name;
    match handle.link().add(LinkWireguard::new(name).build()).execute().await {
        Ok(()) => {}
        Err(rtnetlink::Error::NetlinkError(error)) => match error.to_io() {
            error if error.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()) => {
                return Ok(None);
            }
            error if error.kind() == io::ErrorKind::AlreadyExists => {}
            source => {
                return Err(NetError::Refused {
                    action: format!("make the WireGuard device {name}"),
                    source,
                });
            }
        },
        Err(error) => return Err(refused(format!("make the WireGuard device {name}"), error)),
    }
    let reading = || format!("read the interface {name}");
    let links = handle.link().get().match_name(name.clone()).execute().try_collect::<Vec<_>>().await;
    let links = links.map_err(|error| refused(reading(), error))?;
    let link = links.first().ok_or_else(|| NetError::NoInterface { name: name.clone() })?;
    if !is_wireguard(link) {
        return Err(NetError::NameTaken { name: name.clone() });
    }
    let index = link.header.index;
    let up = LinkUnspec::new_with_index(index).mtu(config.mtu.into()).up().build();
    let up = handle.link().set(up).execute().await;
    up.map_err(|error| refused(format!("set the interface {name} up"), error))?;
    Ok(Some(index))
}

fn is_wireguard(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Wireguard)),
        _ => false,
    })
}

/// The number under which this kernel knows generic netlink's family `wireguard`.
async fn family() -> Result<u16, NetError> {
    let action = "find the kernel's WireGuard";
    let (connection, handle, _) = proto::new_connection(NETLINK_GENERIC).map_err(NetError::Socket)?;
    let mut reader = JoinSet::new();
    reader.spawn(connection);
    let question = GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName("wireguard".to_owned())],
    };
    let flags = NLM_F_REQUEST | NLM_F_ACK;
    let answers =
        collect(request(&handle, GenlMessage::from_payload(question), flags, action)?, action).await?;
    let attributes = answers.into_iter().flat_map(|answer| answer.payload.nlas);
    let mut ids = attributes.filter_map(|attribute| match attribute {
        GenlCtrlAttrs::FamilyId(id) => Some(id),
        _ => None,
    });
    let none = || NetError::Netlink { action: action.to_owned(), reason: "no family id".to_owned() };
    ids.next().ok_or_else(none)
}

fn request<T>(
    handle: &ConnectionHandle<T>,
    message: T,
    flags: u16,
    action: &str,
) -> Result<impl Stream<Item = NetlinkMessage<T>> + use<T>, NetError>
where
    T: NetlinkSerializable + NetlinkDeserializable + Debug + Clone,
    NetlinkMessage<T>: From<T>,
{
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    let answers = handle.request(message, NetlinkAddr::new(0, 0));
    answers.map_err(|error| NetError::Netlink { action: action.to_owned(), reason: error.to_string() })
}

async fn collect<T>(
    answers: impl Stream<Item = NetlinkMessage<T>>,
    action: &str,
) -> Result<Vec<T>, NetError> {
    let mut answers = std::pin::pin!(answers);
    let mut all = Vec::new();
    let late = |_| NetError::Timeout { from: "the kernel".to_owned(), seconds: ANSWER_TIMEOUT.as_secs() };
    while let Some(answer) = tokio::time::timeout(ANSWER_TIMEOUT, answers.next()).await.map_err(late)? {
        match answer.payload {
            NetlinkPayload::InnerMessage(message) => all.push(message),
            NetlinkPayload::Error(error) if error.code.is_some() => {
                return Err(NetError::Refused { action: action.to_owned(), source: error.to_io() });
            }
            _ => {}
        }
    }
    Ok(all)
}
