//! Messages: what is asked, and answers that fit.
//!
//! Invariant: every message that is a question gets an answer, with its id and its question in it; nothing else does.

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, NS, PTR, SOA, SRV, TXT},
    },
};
use muster_core::dns::{self, Choice, Data, Kind, Reply, Snapshot};

/// What a client without EDNS can take (RFC 1035).
const PLAIN: usize = 512;

/// What fits into one packet everywhere: the recommendation of DNS's flag day of 2020.
pub(crate) const LARGEST: u16 = 1232;

/// Endpoints in an answer over UDP. More than a client tries; whoever wants all asks over TCP.
const MOST: usize = 8;

/// Without the header no message.
const HEADER: usize = 12;

/// What a message turned out to be.
pub(crate) enum Incoming {
    /// A question that can be answered.
    Question(Box<Message>),
    /// To be answered with this.
    Wrong(Vec<u8>),
    /// To be passed over: an answer, or noise.
    Nothing,
}

/// Over what a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

pub(crate) fn read(bytes: &[u8]) -> Incoming {
    // The first bit of the flags: an answer. Answering those would let two servers talk for ever.
    if bytes.len() < HEADER || bytes[2] & 0x80 != 0 {
        return Incoming::Nothing;
    }
    let wrong = |id, op_code, code| {
        let answer = Message::error_msg(id, op_code, code);
        answer.to_vec().map_or(Incoming::Nothing, Incoming::Wrong)
    };
    let id = u16::from_be_bytes([bytes[0], bytes[1]]);
    let Ok(message) = Message::from_vec(bytes) else {
        return wrong(id, OpCode::Query, ResponseCode::FormErr);
    };
    let code = match message.metadata.op_code {
        OpCode::Query if message.queries.len() != 1 => ResponseCode::FormErr,
        OpCode::Query => {
            let is_transfer = matches!(message.queries[0].query_type, RecordType::AXFR | RecordType::IXFR);
            let is_internet = matches!(message.queries[0].query_class, DNSClass::IN | DNSClass::ANY);
            match message.edns.as_ref().map_or(0, Edns::version) {
                0 if is_transfer || !is_internet => ResponseCode::Refused,
                0 => return Incoming::Question(Box::new(message)),
                _ => ResponseCode::BADVERS,
            }
        }
        _ => ResponseCode::NotImp,
    };
    write(answer(&message, code), Some(&message), Transport::Udp)
        .map_or(Incoming::Nothing, |(bytes, _)| Incoming::Wrong(bytes))
}

/// An answer without records.
pub(crate) fn answer(question: &Message, code: ResponseCode) -> Message {
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata = Metadata::response_from_request(&question.metadata);
    answer.metadata.response_code = code;
    answer.metadata.recursion_available = true;
    answer.queries.clone_from(&question.queries);
    answer
}

/// The answer about a name of the cluster's. `None`: it is somebody else's.
pub(crate) fn decide(
    snapshot: &Snapshot,
    question: &Message,
    transport: Transport,
    seed: u64,
) -> Option<Message> {
    let query = question.queries.first()?;
    let most = if transport == Transport::Udp { MOST } else { usize::MAX };
    let reply = snapshot.answer(&text(&query.name), kind(query.query_type), Choice { most, seed });
    let mut message = answer(question, ResponseCode::NoError);
    message.metadata.authoritative = true;
    match reply {
        Reply::NotOurs => return None,
        Reply::Empty(soa) => message.authorities.extend(record(&soa, query)),
        Reply::NoSuchName(soa) => {
            message.metadata.response_code = ResponseCode::NXDomain;
            message.authorities.extend(record(&soa, query));
        }
        Reply::Records { answers, additionals, cut } => {
            message.answers.extend(answers.iter().filter_map(|answer| record(answer, query)));
            message.additionals.extend(additionals.iter().filter_map(|more| record(more, query)));
            message.metadata.truncation = cut;
        }
    }
    Some(message)
}

/// The message in bytes, cut down to what the client can take; and whether that took away answers.
pub(crate) fn write(
    mut message: Message,
    question: Option<&Message>,
    transport: Transport,
) -> Option<(Vec<u8>, bool)> {
    let edns = question.and_then(|question| question.edns.as_ref());
    let room = match (transport, edns) {
        (Transport::Tcp, _) => usize::from(u16::MAX),
        (Transport::Udp, None) => PLAIN,
        (Transport::Udp, Some(edns)) => usize::from(edns.max_payload().clamp(512, LARGEST)),
    };
    message.edns = edns.map(|edns| {
        let mut own = Edns::new();
        own.set_max_payload(LARGEST).set_dnssec_ok(edns.flags().dnssec_ok);
        own
    });
    let mut bytes = message.to_vec().ok()?;
    if bytes.len() > room {
        // Nobody needs them who can ask.
        message.additionals.clear();
        bytes = message.to_vec().ok()?;
    }
    while bytes.len() > room {
        message.metadata.truncation = true;
        message.authorities.clear();
        let fewer = message.answers.len() / 2;
        message.answers.truncate(fewer);
        bytes = message.to_vec().ok()?;
        if fewer == 0 {
            break;
        }
    }
    Some((bytes, message.metadata.truncation))
}

/// A fresh question for an upstream.
pub(crate) fn question(query: &Query, id: u16, signed: bool, checking_disabled: bool) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = checking_disabled;
    message.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(LARGEST).set_dnssec_ok(signed);
    message.set_edns(edns);
    message
}

/// A name as `muster_core::dns` has it. What is no text there becomes something that no name of ours has.
pub(crate) fn text(name: &Name) -> String {
    let label = |label: &[u8]| -> String {
        let fits =
            |byte: &u8| if byte.is_ascii_graphic() && *byte != b'.' { char::from(*byte) } else { '\\' };
        label.iter().map(fits).collect()
    };
    name.iter().map(label).collect::<Vec<_>>().join(".")
}

fn kind(record_type: RecordType) -> Kind {
    match record_type {
        RecordType::A => Kind::A,
        RecordType::SRV => Kind::Srv,
        RecordType::PTR => Kind::Ptr,
        RecordType::TXT => Kind::Txt,
        RecordType::SOA => Kind::Soa,
        RecordType::NS => Kind::Ns,
        RecordType::ANY => Kind::Any,
        _ => Kind::Other,
    }
}

/// `None`: a name is too long for DNS.
fn record(record: &dns::Record, query: &Query) -> Option<Record> {
    let name = |text: &str| Name::from_ascii(format!("{text}.")).ok();
    // Spelled as it was asked: some clients check that.
    let own = match text(&query.name).eq_ignore_ascii_case(&record.name) {
        true => query.name.clone(),
        false => name(&record.name)?,
    };
    let data = match &record.data {
        Data::A(address) => RData::A(A(*address)),
        Data::Srv { priority, weight, port, target } => {
            RData::SRV(SRV::new(*priority, *weight, *port, name(target)?))
        }
        Data::Ptr(target) => RData::PTR(PTR(name(target)?)),
        Data::Txt(texts) => RData::TXT(TXT::new(texts.clone())),
        Data::Ns(server) => RData::NS(NS(name(server)?)),
        Data::Soa { server, serial, minimum } => {
            let responsible = name(&format!("hostmaster.{}", server.strip_prefix("ns.").unwrap_or(server)))?;
            // Refresh, retry and expiry are for secondary servers, which we have none of.
            RData::SOA(SOA::new(name(server)?, responsible, *serial, 3600, 600, 86_400, *minimum))
        }
    };
    Some(Record::from_rdata(own, record.ttl, data))
}
