//! Elements between the plan's words and the kernel's bytes.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tollgate_model::name::Protocol;

use super::object::{ChainName, ElementKey, ForeignKey, SetName, Value, Verdict};
use super::word::Word;
use tollgate_nftables::attribute::Bytes;
use tollgate_nftables::element::{Data, Element};
use tollgate_nftables::expression::Verdict as KernelVerdict;

// === writing ===

/// The kernel's elements for one of ours, by key alone: one, or two where a range begins and where it is over.
pub(crate) fn keys(key: &ElementKey) -> impl Iterator<Item = Element> + use<> {
    let (first, rest) = match key {
        ElementKey::Address(ip) => (Element::new(address(*ip)), Vec::new()),
        ElementKey::Cidr(cidr) => (Element::new(address(cidr.network())), end(*cidr)),
        ElementKey::Twice(ip) => (Element::new(concat(&[&address(*ip), &address(*ip)])), Vec::new()),
        ElementKey::Frontend(ip, protocol, port) => {
            (Element::new(concat(&[&address(*ip), &[protocol.number()], &port.to_be_bytes()])), Vec::new())
        }
        ElementKey::NodePort(protocol, port) => {
            (Element::new(concat(&[&[protocol.number()], &port.to_be_bytes()])), Vec::new())
        }
        ElementKey::Range(word, cidr) => {
            let word = word.bits().to_be_bytes();
            let last = concat(&[&word, &address(cidr.broadcast())]);
            (Element::new(concat(&[&word, &address(cidr.network())])).up_to(last), Vec::new())
        }
        ElementKey::Word(word) => (Element::new(word.bits().into()), Vec::new()),
        ElementKey::Slot(word, index) => {
            let key = concat(&[&word.bits().to_ne_bytes(), &u32::from(*index).to_ne_bytes()]);
            (Element::new(key), Vec::new())
        }
        ElementKey::Foreign(key) => {
            let mut elements: Vec<_> = key.keys.iter().map(foreign).collect();
            (elements.pop().unwrap_or_else(|| Element::new(Bytes::EMPTY)), elements)
        }
    };
    std::iter::once(first).chain(rest)
}

/// The kernel's elements for one of ours.
pub(crate) fn elements(key: &ElementKey, value: &Value) -> impl Iterator<Item = Element> + use<> {
    let with_value = match value {
        Value::Word(word) => Some((Data::Value(word.bits().into()), "")),
        Value::Frontend(word, name) => Some((Data::Value(word.bits().into()), &**name)),
        Value::Endpoint(ip, port) => Some((Data::Value(concat(&[&address(*ip), &port.to_be_bytes()])), "")),
        Value::Verdict(Verdict::Drop) => Some((Data::Verdict(KernelVerdict::Drop), "")),
        Value::Verdict(Verdict::Goto(chain)) => {
            Some((Data::Verdict(KernelVerdict::Goto(chain.to_string().into())), ""))
        }
        // What is not ours is never added.
        Value::Present | Value::Set(_) | Value::Chain(_) | Value::Foreign(_) => None,
    };
    let (data, comment) = with_value.map_or((None, Box::default()), |(data, comment)| (Some(data), comment.into()));
    keys(key).map(move |element| Element { data: data.clone(), comment: Box::clone(&comment), ..element })
}

/// Where a range is over; one that goes on to the last address of all has no end.
fn end(cidr: IpNet) -> Vec<Element> {
    after(cidr.broadcast()).map(|ip| Element::new(address(ip)).end()).into_iter().collect()
}

fn after(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => Some(IpAddr::V4(u32::from(ip).checked_add(1)?.into())),
        IpAddr::V6(ip) => Some(IpAddr::V6(u128::from(ip).checked_add(1)?.into())),
    }
}

fn foreign((key, last, is_end): &(Bytes, Option<Bytes>, bool)) -> Element {
    Element { last: *last, is_end: *is_end, ..Element::new(*key) }
}

fn address(ip: IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(ip) => Bytes::new(&ip.octets()),
        IpAddr::V6(ip) => Bytes::new(&ip.octets()),
    }
}

fn concat(parts: &[&[u8]]) -> Bytes {
    let mut bytes = Bytes::EMPTY;
    parts.iter().for_each(|part| bytes.push_part(part));
    bytes
}

// === reading ===

/// The key of one of the kernel's elements, of a set whose ranges are not two elements each.
pub(crate) fn read_key(set: &SetName, element: &Element) -> ElementKey {
    let key = element.key;
    let read = match element.last {
        // Without ranges, the last key is the key.
        Some(last) if *set == SetName::LbRanges => read_word_and_range(&key, &last),
        None if *set == SetName::LbRanges => read_word_and_range(&key, &key),
        Some(last) if last != key => None,
        _ => read_single_key(set, &key),
    };
    read.unwrap_or_else(|| {
        let keys = vec![(key, element.last, element.is_end)];
        ElementKey::Foreign(Box::new(ForeignKey { text: text(set, element).into(), keys }))
    })
}

fn read_single_key(set: &SetName, key: &[u8]) -> Option<ElementKey> {
    match set {
        SetName::ClusterIps | SetName::NodeportIps => Some(ElementKey::Address(read_address(key)?)),
        SetName::Hairpin => {
            let (from, to) = key.split_at(key.len() / 2);
            (from == to).then_some(())?;
            Some(ElementKey::Twice(read_address(from)?))
        }
        SetName::Frontends => {
            let (ip, rest) = key.split_at_checked(key.len().checked_sub(8)?)?;
            let (protocol, port) = read_service(rest)?;
            Some(ElementKey::Frontend(read_address(ip)?, protocol, port))
        }
        SetName::Nodeports => {
            let (protocol, port) = read_service(key)?;
            Some(ElementKey::NodePort(protocol, port))
        }
        SetName::Pools | SetName::Kinds | SetName::Picks | SetName::Refs | SetName::LocalRefs => {
            Some(ElementKey::Word(read_word(key)?))
        }
        SetName::SlotsTcp | SetName::SlotsUdp | SetName::SlotsSctp | SetName::StickySlots => {
            let (word, index) = key.split_at_checked(4)?;
            let index = u32::from_ne_bytes(index.try_into().ok()?);
            Some(ElementKey::Slot(read_word(word)?, u16::try_from(index).ok()?))
        }
        SetName::LocalPods | SetName::ServiceCidrs | SetName::LbRanges | SetName::Affinity | SetName::Foreign(_) => {
            None
        }
    }
}

fn read_word_and_range(key: &[u8], last: &[u8]) -> Option<ElementKey> {
    let ((word, from), (last_word, to)) = (key.split_at_checked(4)?, last.split_at_checked(4)?);
    (word == last_word).then_some(())?;
    let word = Word::of(u32::from_be_bytes(word.try_into().ok()?));
    Some(ElementKey::Range(word, read_range(read_address(from)?, read_address(to)?)?))
}

/// The ranges that begin and are over at these keys, which are all that a set has.
pub(crate) fn read_ranges(set: &SetName, mut elements: Vec<Element>) -> Vec<ElementKey> {
    // One may be over where another begins.
    elements.sort_by_key(|element| (element.key, !element.is_end));
    let (mut ranges, mut open): (Vec<_>, Option<Element>) = (Vec::new(), None);
    for element in elements {
        match (open.take(), element.is_end) {
            (Some(from), true) => ranges.push(range(set, &from, Some(&element))),
            // nft says of some sets that no range has begun yet at their lowest key.
            (None, true) => {}
            (before, false) => {
                ranges.extend(before.map(|from| range(set, &from, None)));
                open = Some(element);
            }
        }
    }
    ranges.extend(open.map(|from| range(set, &from, None)));
    ranges
}

fn range(set: &SetName, from: &Element, to: Option<&Element>) -> ElementKey {
    let read = || {
        let first = read_address(&from.key)?;
        let last = match (to, first) {
            (Some(to), _) => before(read_address(&to.key)?)?,
            (None, IpAddr::V4(_)) => IpAddr::V4([255; 4].into()),
            (None, IpAddr::V6(_)) => IpAddr::V6([255; 16].into()),
        };
        Some((first, last, read_range(first, last)))
    };
    let text = match read() {
        Some((_, _, Some(cidr))) => return ElementKey::Cidr(cidr),
        Some((first, last, None)) => format!("{first}-{last}"),
        None => text(set, from),
    };
    let keys = [Some(from), to].into_iter().flatten().map(|it| (it.key, it.last, it.is_end)).collect();
    ElementKey::Foreign(Box::new(ForeignKey { text: text.into(), keys }))
}

fn before(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => Some(IpAddr::V4(u32::from(ip).checked_sub(1)?.into())),
        IpAddr::V6(ip) => Some(IpAddr::V6(u128::from(ip).checked_sub(1)?.into())),
    }
}

/// The network that has exactly these addresses.
fn read_range(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let length = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (u32::from(first) ^ u32::from(last)).leading_zeros(),
        (IpAddr::V6(first), IpAddr::V6(last)) => (u128::from(first) ^ u128::from(last)).leading_zeros(),
        _ => return None,
    };
    let length = u8::try_from(length).ok()?;
    let net = match first {
        IpAddr::V4(first) => IpNet::V4(Ipv4Net::new(first, length).ok()?),
        IpAddr::V6(first) => IpNet::V6(Ipv6Net::new(first, length).ok()?),
    };
    ((net.network(), net.broadcast()) == (first, last)).then_some(net)
}

/// The value as we would have made it; otherwise something for readers.
pub(crate) fn read_value(set: &SetName, element: &Element) -> Value {
    let Some(data) = &element.data else { return Value::Present };
    let read = match (set, data) {
        (SetName::Frontends | SetName::Nodeports, Data::Value(word)) => {
            read_word(word).map(|word| Value::Frontend(word, element.comment.clone()))
        }
        (SetName::Pools | SetName::StickySlots, Data::Value(word)) => read_word(word).map(Value::Word),
        (
            SetName::SlotsTcp | SetName::SlotsUdp | SetName::SlotsSctp | SetName::Refs | SetName::LocalRefs,
            Data::Value(endpoint),
        ) => read_endpoint(endpoint),
        (SetName::Kinds | SetName::Picks, Data::Verdict(KernelVerdict::Goto(chain))) => {
            Some(Value::Verdict(Verdict::Goto(ChainName::named(chain))))
        }
        (SetName::Kinds | SetName::Picks, Data::Verdict(KernelVerdict::Drop)) => Some(Value::Verdict(Verdict::Drop)),
        _ => None,
    };
    read.unwrap_or_else(|| {
        Value::Foreign(match data {
            Data::Value(value) => format!("{value:?}"),
            Data::Verdict(verdict) => format!("{verdict:?}").to_lowercase(),
        })
    })
}

fn read_endpoint(endpoint: &[u8]) -> Option<Value> {
    let (ip, port) = endpoint.split_at_checked(endpoint.len().checked_sub(4)?)?;
    Some(Value::Endpoint(read_address(ip)?, u16::from_be_bytes(port[..2].try_into().ok()?)))
}

fn read_word(word: &[u8]) -> Option<Word> {
    Some(Word::of(u32::from_ne_bytes(word.try_into().ok()?)))
}

fn read_address(ip: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(ip).ok().map(IpAddr::from);
    v4().or_else(|| <[u8; 16]>::try_from(ip).ok().map(IpAddr::from))
}

/// A protocol and a port.
fn read_service(bytes: &[u8]) -> Option<(Protocol, u16)> {
    let [protocol, _, _, _, high, low, _, _] = bytes else { return None };
    let known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let protocol = known.into_iter().find(|known| known.number() == *protocol)?;
    Some((protocol, u16::from_be_bytes([*high, *low])))
}

/// A key that is not ours, as far as it can be told what it says.
fn text(set: &SetName, element: &Element) -> String {
    let key = &element.key;
    let single = |part: &[u8]| read_address(part).map_or_else(|| hex(part), |ip| ip.to_string());
    let mut text = match set {
        SetName::Hairpin => {
            let (from, to) = key.split_at(key.len() / 2);
            format!("{} . {}", single(from), single(to))
        }
        SetName::Frontends if key.len() > 8 => {
            let (ip, rest) = key.split_at(key.len() - 8);
            format!("{} . {} . {}", single(ip), rest[0], u16::from_be_bytes([rest[4], rest[5]]))
        }
        SetName::LbRanges if key.len() > 4 => {
            let (word, first) = key.split_at(4);
            let word =
                word.try_into().map_or_else(|_| hex(word), |word| Word::of(u32::from_be_bytes(word)).to_string());
            let last = element.last.as_ref().and_then(|last| last.get(4..)).unwrap_or(first);
            return format!("{word} . {}-{}", single(first), single(last));
        }
        SetName::Nodeports if key.len() == 8 => format!("{} . {}", key[0], u16::from_be_bytes([key[4], key[5]])),
        _ => hex(key),
    };
    if let Some(last) = &element.last {
        // Writing to a string does not fail.
        let _ = write!(text, "-{}", hex(last));
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    format!("0x{:?}", Bytes::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads what was written.
    fn round_trip(set: &SetName, key: &ElementKey) -> Vec<ElementKey> {
        let elements: Vec<_> = keys(key).collect();
        match set {
            SetName::LocalPods => read_ranges(set, elements),
            set => elements.iter().map(|element| read_key(set, element)).collect(),
        }
    }

    #[test]
    fn keys_are_read_back() {
        let cidr = |text: &str| text.parse::<IpNet>().unwrap();
        let word = Word::new(3, 6);
        for ip in ["192.0.2.7", "2001:db8::7"].map(|ip| ip.parse::<IpAddr>().unwrap()) {
            let keys = [
                (SetName::ClusterIps, ElementKey::Address(ip)),
                (SetName::Hairpin, ElementKey::Twice(ip)),
                (SetName::Frontends, ElementKey::Frontend(ip, Protocol::Sctp, 30_001)),
                (SetName::LbRanges, ElementKey::Range(word, ip.into())),
                (SetName::LocalPods, ElementKey::Cidr(ip.into())),
            ];
            for (set, key) in keys {
                assert_eq!(round_trip(&set, &key), [key]);
            }
        }
        for range in ["10.0.0.0/8", "0.0.0.0/0", "128.0.0.0/1", "::/0", "fd00::/64"].map(cidr) {
            let range = range.trunc();
            assert_eq!(round_trip(&SetName::LocalPods, &ElementKey::Cidr(range)), [ElementKey::Cidr(range)]);
            let range = ElementKey::Range(word, range);
            assert_eq!(round_trip(&SetName::LbRanges, &range), [range]);
        }
        assert_eq!(round_trip(&SetName::Picks, &ElementKey::Word(word)), [ElementKey::Word(word)]);
        let slot = ElementKey::Slot(word, u16::MAX);
        assert_eq!(round_trip(&SetName::SlotsTcp, &slot), [slot]);
        let node_port = ElementKey::NodePort(Protocol::Udp, 30_001);
        assert_eq!(round_trip(&SetName::Nodeports, &node_port), [node_port]);
    }

    #[test]
    fn ranges_that_touch_are_two() {
        let ranges = ["10.0.0.0/24", "10.0.1.0/25", "10.0.2.0/24"].map(|cidr| ElementKey::Cidr(cidr.parse().unwrap()));
        let elements = ranges.iter().rev().flat_map(keys).collect();
        assert_eq!(read_ranges(&SetName::LocalPods, elements), ranges);
    }

    #[test]
    fn what_is_not_ours_is_named_and_can_be_deleted() {
        let from = |ip: [u8; 4]| Element::new(address(ip.into()));
        let elements = vec![from([10, 1, 0, 3]), from([10, 1, 0, 10]).end()];
        let [ElementKey::Foreign(range)] = &read_ranges(&SetName::LocalPods, elements.clone())[..] else {
            panic!("not foreign")
        };
        assert_eq!(&*range.text, "10.1.0.3-10.1.0.9");
        let mut deleted: Vec<_> = keys(&ElementKey::Foreign(range.clone())).collect();
        deleted.sort_by_key(|element| element.key);
        assert_eq!(deleted, elements);
    }
}
