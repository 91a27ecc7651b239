//! The rules on their own: addresses, hosts, and how URLs are read.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::super::address::{is_listable, is_public};
use super::super::target::Target;
use super::*;

/// An IPv4 address in IPv6, at this bit from the right, after a prefix.
fn embedded(prefix: &str, ip: u32, shift: u32) -> IpAddr {
    let prefix: Ipv6Addr = prefix.parse().unwrap();
    IpAddr::V6(Ipv6Addr::from_bits(prefix.to_bits() | u128::from(ip) << shift))
}

/// The same rule in other words.
fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_broadcast()
        || ip.is_documentation()
        || ip.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && b & 0xC0 == 64)
        || (a == 198 && b & 0xFE == 18)
        || matches!(
            (a, b, c),
            (192, 0, 0) | (192, 31, 196) | (192, 52, 193) | (192, 88, 99) | (192, 175, 48)
        )
        || ip == Ipv4Addr::new(168, 63, 129, 16);
    !special
}

/// IPv4 addresses, most of them close to the edge of a special network.
fn ipv4() -> impl Strategy<Value = u32> {
    let edges = [
        "0.0.0.0",
        "1.0.0.0",
        "10.0.0.0",
        "11.0.0.0",
        "100.64.0.0",
        "100.128.0.0",
        "127.0.0.0",
        "128.0.0.0",
        "168.63.129.16",
        "169.254.0.0",
        "169.255.0.0",
        "172.16.0.0",
        "172.32.0.0",
        "192.0.0.0",
        "192.0.1.0",
        "192.0.2.0",
        "192.0.3.0",
        "192.31.196.0",
        "192.52.193.0",
        "192.88.99.0",
        "192.168.0.0",
        "192.169.0.0",
        "192.175.48.0",
        "198.18.0.0",
        "198.20.0.0",
        "198.51.100.0",
        "198.51.101.0",
        "203.0.113.0",
        "203.0.114.0",
        "224.0.0.0",
        "240.0.0.0",
        "255.255.255.255",
    ];
    let edges = edges.map(|ip| ip.parse::<Ipv4Addr>().unwrap().to_bits());
    let near = (prop::sample::select(edges.to_vec()), -300_i32..300)
        .prop_map(|(edge, offset)| edge.wrapping_add_signed(offset));
    prop_oneof![near, any::<u32>()]
}

proptest! {
    #[test]
    fn ipv4_addresses_are_public_or_not_as_the_registry_says(ip in ipv4()) {
        let ip = Ipv4Addr::from_bits(ip);
        prop_assert_eq!(is_public(ip.into()), is_public_v4(ip), "{}", ip);
        prop_assert!(!is_public(ip.into()) || is_listable(ip.into()), "{}", ip);
    }

    #[test]
    fn no_ipv4_address_is_public_inside_an_ipv6_address(ip in ipv4()) {
        for (prefix, shift) in
            [("::ffff:0:0", 0), ("::", 0), ("64:ff9b::", 0), ("64:ff9b:1::", 0), ("2002::", 80), ("2001::", 0)]
        {
            let ip = embedded(prefix, ip, shift);
            prop_assert!(!is_public(ip), "{}", ip);
        }
        // A listed host is judged by the address inside.
        let inside = is_listable(Ipv4Addr::from_bits(ip).into());
        for prefix in ["::ffff:0:0", "64:ff9b::"] {
            prop_assert_eq!(is_listable(embedded(prefix, ip, 0)), inside);
        }
    }

    #[test]
    fn public_ipv6_addresses_are_global_unicast(high in any::<u64>(), low in any::<u64>()) {
        let ip = Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low));
        let special = ip.is_unspecified()
            || ip.is_loopback()
            || ip.is_multicast()
            || ip.is_unique_local()
            || ip.is_unicast_link_local();
        prop_assert!(!(special && is_public(ip.into())), "{}", ip);
        prop_assert!(high >> 61 == 1 || !is_public(ip.into()), "{}", ip);
    }

    #[test]
    fn every_spelling_of_an_ipv4_address_is_that_address(ip in ipv4()) {
        let address = Ipv4Addr::from_bits(ip);
        let [a, b, c, d] = address.octets();
        let low = ip & 0xFF_FFFF;
        for host in [
            format!("{address}"), format!("{address}."), format!("{ip}"), format!("{ip:#x}"), format!("0{ip:o}"),
            format!("{a}.{low}"), format!("{a:#x}.{b:#X}.{}", ip & 0xFFFF), format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
            format!("%{:02x}{}", b'0' + a / 100 % 10, &format!("{a:03}.{b}.{c}.{d}")[1..]),
        ] {
            // 0177 is octal, and 099 no number.
            let Ok(target) = Target::parse(&format!("http://{host}/a.png")) else { continue };
            match target.host() {
                Host::Ipv4(found) if host.starts_with('%') => {
                    prop_assert_eq!(found.octets()[1..].to_vec(), vec![b, c, d]);
                }
                found => {
                    prop_assert_eq!(found, &Host::<String>::Ipv4(address), "{}", host);
                }
            }
        }
    }
}

#[test]
fn special_ipv6_addresses_are_not_public() {
    for ip in [
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::ffff:0:7f00:1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "100::1",
        "100:0:0:1::1",
        "2001::1",
        "2001:2::1",
        "2001:10::1",
        "2001:20::1",
        "2001:1ff::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2620:4f:8000::1",
        "3fff::1",
        "3fff:fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "ffff::1",
        "4000::1",
    ] {
        assert!(!is_public(ip.parse().unwrap()), "{ip}");
    }
    for ip in [
        "2001:200::1",
        "2606:2800:21f:cb07:6820:80da:af6b:8b2c",
        "2a00:1450:4001:81b::200e",
        "3ffe::1",
    ] {
        assert!(is_public(ip.parse().unwrap()), "{ip}");
    }
}

#[test]
fn listed_hosts_may_be_private_but_not_metadata_services() {
    for ip in [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.1.5",
        "172.17.0.2",
        "100.64.0.9",
        "8.8.8.8",
        "::1",
        "fd12::5",
        "fd20:ce::1",
        "fd00:42::43",
        "2606:2800::1",
        "64:ff9b::808:808",
    ] {
        assert!(is_listable(ip.parse().unwrap()), "{ip}");
    }
    for ip in [
        "0.0.0.0",
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "fd00:ec2::23",
        "fd00:ec2::254",
        "fd20:ce::254",
        "fd00:c1::a9fe:a9fe",
        "fd00:42::42",
        "fd00:a9fe:a9fe::1",
        "fd00:100::100:200",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::808:808",
        "::ffff:169.254.169.254",
        "2002:a9fe:a9fe::1",
        "2001::1",
        "::a9fe:a9fe",
    ] {
        assert!(!is_listable(ip.parse().unwrap()), "{ip}");
    }
}

#[test]
fn addresses_that_are_never_fetched_are_refused_as_a_parameter() {
    let long = format!("http://example.com/{}", "a".repeat(MAX_URL_BYTES));
    for url in [
        "",
        "cat.jpg",
        "/etc/passwd",
        "//example.com/a",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "ftp://example.com/a",
        "gopher://example.com/_x",
        "dict://example.com:11211/stats",
        "ldap://example.com",
        "jar:http://example.com!/",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "blob:http://example.com/1",
        "unix:/run/docker.sock",
        "http://",
        "http:///",
        "http://user@example.com/",
        "http://user:secret@example.com/",
        "http://:secret@example.com/",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://exa mple.com/",
        "http://[::1",
        "http://[v1.x]/",
        "http://[fe80::1%25eth0]/",
        "http://[::1]x/",
        "http://127.0.0.1:80:80/",
        "http://256.256.256.256/",
        "http://1.2.3.4.5/",
        "http://%/",
        "http://a%00b/",
        long.as_str(),
    ] {
        let error = Target::parse(url).expect_err(url);
        assert_eq!(
            (error.kind(), error.field()),
            (ErrorKind::InvalidParameter, Some("image_url")),
            "{url}"
        );
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[test]
fn hosts_and_what_is_sent_are_read_as_browsers_do() {
    for (url, host, authority, resource) in [
        ("http://Example.COM", "example.com", "example.com", "/"),
        ("HTTP://example.com:80/a%20b/../c.png?x=1#y", "example.com", "example.com", "/c.png?x=1"),
        ("https://example.com:8443/ä b", "example.com", "example.com:8443", "/%C3%A4%20b"),
        ("http://example.com./", "example.com", "example.com.", "/"),
        ("http://bücher.example/", "xn--bcher-kva.example", "xn--bcher-kva.example", "/"),
        ("http:\\\\example.com\\a", "example.com", "example.com", "/a"),
        ("http://example.com\\@127.0.0.1/", "example.com", "example.com", "/@127.0.0.1/"),
        ("http://example.com#@127.0.0.1/", "example.com", "example.com", "/"),
        ("http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/", "localhost", "localhost", "/"),
        ("http://１２７。０。０。１/", "127.0.0.1", "127.0.0.1", "/"),
        ("http://%31%32%37.1/", "127.0.0.1", "127.0.0.1", "/"),
        ("http://[::ffff:127.0.0.1]/", "[::ffff:7f00:1]", "[::ffff:7f00:1]", "/"),
        ("http://[0:0::1]:81/", "[::1]", "[::1]:81", "/"),
    ] {
        let target = Target::parse(url).unwrap();
        let found = (target.host().to_string(), target.authority(), target.resource());
        assert_eq!((found.0.as_str(), found.1, found.2), (host, authority, resource), "{url}");
    }
}

#[test]
fn listed_hosts_are_matched_whole_and_with_their_port() {
    let list = "Photos.Example.com., *.example.org,192.168.1.5:9000, [fd12::5], [fd12::5]:81, nas, bücher.example";
    let FetchSources::Listed(hosts) = listed(list) else { unreachable!() };
    for (url, expected) in [
        ("https://photos.example.com/a", true),
        ("http://photos.example.com./a", true),
        ("http://photos.example.com:80/a", true),
        ("http://photos.example.com:443/a", false),
        ("https://photos.example.com:8443/", false),
        ("http://xphotos.example.com/", false),
        ("http://a.photos.example.com/", false),
        ("http://a.example.org/", true),
        ("http://a.b.example.org/", true),
        ("http://example.org/", false),
        ("http://badexample.org/", false),
        ("http://example.org.evil.com/", false),
        ("http://192.168.1.5:9000/", true),
        ("http://3232235781:9000/", true),
        ("http://192.168.1.5/", false),
        ("http://[fd12::5]/", true),
        ("http://[fd12:0::5]:81/", true),
        ("http://[fd12::5]:82/", false),
        ("http://nas/", true),
        ("http://nas.local/", false),
        ("http://xn--bcher-kva.example/", true),
    ] {
        assert_eq!(hosts.contain(&Target::parse(url).unwrap()), expected, "{url}");
    }
    for text in [
        "",
        " , ",
        "http://example.com",
        "example.com/photos",
        "user@example.com",
        "example.com:",
        "example.com:0",
        "example.com:x",
        "example.com:70000",
        "fd12::5",
        "[fd12::5",
        "*",
        "*.",
        "*.1.2.3.4",
        "a*.example.com",
        "exa mple.com",
        ".",
    ] {
        assert_eq!(text.parse::<FetchHosts>(), Err(NotHosts), "{text}");
    }
}

#[test]
fn urls_are_told_from_base64_and_data_uris() {
    for url in ["http://a", "https://a", "HTTPS://a", " \n http://a", "http:a"] {
        assert!(is_url(url), "{url}");
    }
    for other in [
        "",
        "http",
        "httpaaaa",
        "data:image/png;base64,http://",
        "ftp://a",
        "aHR0cDovLw==",
        "/http://a",
    ] {
        assert!(!is_url(other), "{other}");
    }
}
