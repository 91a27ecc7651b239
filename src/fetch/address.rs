//! Which IP addresses may be fetched from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A network: its first address, and how many bits its addresses have in common.
type Ipv4Network = (Ipv4Addr, u32);
type Ipv6Network = (Ipv6Addr, u32);

const fn v4(a: u8, b: u8, c: u8, d: u8, bits: u32) -> Ipv4Network {
    (Ipv4Addr::new(a, b, c, d), bits)
}

const fn v6(a: u16, b: u16, c: u16, bits: u32) -> Ipv6Network {
    (Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), bits)
}

/// IPv4 networks that are not the public internet, after IANA's registry of special-purpose addresses
/// and RFC 5771, and one public address that clouds use inside.
const NOT_PUBLIC_V4: [Ipv4Network; 19] = [
    v4(0, 0, 0, 0, 8),        // this network, unspecified
    v4(10, 0, 0, 0, 8),       // private
    v4(100, 64, 0, 0, 10),    // shared by carriers (CGNAT); Alibaba's metadata
    v4(127, 0, 0, 0, 8),      // loopback
    v4(168, 63, 129, 16, 32), // Azure's metadata and DNS
    v4(169, 254, 0, 0, 16),   // link-local; metadata of most clouds
    v4(172, 16, 0, 0, 12),    // private
    v4(192, 0, 0, 0, 24),     // protocol assignments; Oracle's metadata
    v4(192, 0, 2, 0, 24),     // documentation
    v4(192, 31, 196, 0, 24),  // AS112
    v4(192, 52, 193, 0, 24),  // AMT relays
    v4(192, 88, 99, 0, 24),   // 6to4 relays
    v4(192, 168, 0, 0, 16),   // private
    v4(192, 175, 48, 0, 24),  // AS112
    v4(198, 18, 0, 0, 15),    // benchmarks
    v4(198, 51, 100, 0, 24),  // documentation
    v4(203, 0, 113, 0, 24),   // documentation
    v4(224, 0, 0, 0, 4),      // multicast
    v4(240, 0, 0, 0, 4),      // reserved, broadcast
];

/// All public IPv6 addresses are in here. Outside are loopback, unspecified, IPv4-mapped and
/// IPv4-compatible addresses, NAT64 (64:ff9b::/96), discard, segment routing, unique local, link-local,
/// site-local and multicast addresses.
const UNICAST_V6: Ipv6Network = v6(0x2000, 0, 0, 3);

/// IPv6 networks in [`UNICAST_V6`] that are not the public internet.
const NOT_PUBLIC_V6: [Ipv6Network; 5] = [
    v6(0x2001, 0, 0, 23), // protocol assignments: Teredo, benchmarks, ORCHID, AMT
    v6(0x2001, 0x0db8, 0, 32), // documentation
    v6(0x2002, 0, 0, 16), // 6to4: any IPv4 address may be inside
    v6(0x2620, 0x4f, 0x8000, 48), // AS112
    v6(0x3fff, 0, 0, 20), // documentation
];

/// IPv4 networks that no operator means who lists a host: they hold metadata of clouds, or no host at
/// all. Private networks and loopback are not among them.
const NEVER_V4: [Ipv4Network; 7] = [
    v4(0, 0, 0, 0, 8),
    v4(100, 100, 100, 200, 32),
    v4(168, 63, 129, 16, 32),
    v4(169, 254, 0, 0, 16),
    v4(192, 0, 0, 0, 24),
    v4(224, 0, 0, 0, 4),
    v4(240, 0, 0, 0, 4),
];

/// IPv6 networks of the same kind: those beside [`UNICAST_V6`] that are neither loopback nor unique
/// local are refused anyway.
const NEVER_V6: [Ipv6Network; 8] = [
    v6(0x2001, 0, 0, 32), // Teredo
    v6(0x2002, 0, 0, 16), // 6to4
    // Metadata.
    v6(0xfd00, 0x0ec2, 0, 32),                                // Amazon
    (Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254), 128), // Google
    (Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe), 128), // Oracle
    (Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42), 128),  // Scaleway
    (Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1), 128), // Akamai
    (Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0x100, 0x200), 128), // Alibaba
];

const UNIQUE_LOCAL_V6: Ipv6Network = v6(0xfc00, 0, 0, 7);

/// Whether `ip` is an address of the public internet.
pub(super) fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !NOT_PUBLIC_V4.iter().any(|network| contains_v4(network, ip)),
        IpAddr::V6(ip) => {
            contains_v6(&UNICAST_V6, ip)
                && !NOT_PUBLIC_V6.iter().any(|network| contains_v6(network, ip))
        }
    }
}

/// Whether a host that the operator has listed may have the address `ip`: a public, private or loopback
/// one, but no metadata service and nothing that is not one host.
pub(super) fn is_listable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_listable_v4(ip),
        IpAddr::V6(ip) => match translated(ip) {
            Some(ip) => is_listable_v4(ip),
            None => {
                let unicast = [UNICAST_V6, UNIQUE_LOCAL_V6];
                let unicast = unicast.iter().any(|network| contains_v6(network, ip));
                let never = NEVER_V6.iter().any(|network| contains_v6(network, ip));
                ip.is_loopback() || (unicast && !never)
            }
        },
    }
}

fn is_listable_v4(ip: Ipv4Addr) -> bool {
    !NEVER_V4.iter().any(|network| contains_v4(network, ip))
}

/// The IPv4 address that packets for `ip` reach: of an IPv4-mapped address, or through NAT64.
fn translated(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let [first @ .., a, b] = ip.segments();
    let inside = matches!(first, [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0]);
    let ([a, b], [c, d]) = (a.to_be_bytes(), b.to_be_bytes());
    inside.then(|| Ipv4Addr::new(a, b, c, d))
}

/// Networks have at least one bit in common, so no shift is as long as the number.
fn contains_v4((first, bits): &Ipv4Network, ip: Ipv4Addr) -> bool {
    (ip.to_bits() ^ first.to_bits()) >> (32 - bits) == 0
}

fn contains_v6((first, bits): &Ipv6Network, ip: Ipv6Addr) -> bool {
    (ip.to_bits() ^ first.to_bits()) >> (128 - bits) == 0
}
