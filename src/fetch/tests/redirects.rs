//! Hostile names and redirects.

use super::*;

/// 127.0.0.1 and its friends, as attackers write them.
const LOOPBACK: [&str; 41] = [
    "127.0.0.1",
    "127.0.0.1.",
    "127.1",
    "127.0.1",
    "0x7f.1",
    "0x7F.0.0.0x1",
    "0x7f000001",
    "2130706433",
    "017700000001",
    "0177.0.0.1",
    "0177.0.0.01",
    "127.000.000.001",
    "127.127.127.127",
    "0",
    "0.0.0.0",
    "0x0",
    "00",
    "localhost",
    "localhost.",
    "LOCALHOST",
    "LocalHost",
    "[::1]",
    "[::]",
    "[0:0:0:0:0:0:0:1]",
    "[0000::0001]",
    "[::127.0.0.1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[64:ff9b::127.0.0.1]",
    "[2002:7f00:1::]",
    "%31%32%37.0.0.1",
    "%6c%6f%63alhost",
    "１２７.０.０.１",
    "127。0。0。1",
    "①②⑦.⓪.⓪.①",
    "ｌｏｃａｌｈｏｓｔ",
    "loc\u{ad}alhost",
    "127.0.\t0.1",
    "[::ffff:0:127.0.0.1]",
    "[64:ff9b:1::127.0.0.1]",
    "[2001:0:7f00:1::1]",
];

/// Other places inside.
const INSIDE: [&str; 21] = [
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "169.254.169.254",
    "2852039166",
    "0xa9fea9fe",
    "169.254.43518",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "224.0.0.1",
    "255.255.255.255",
    "[fe80::1]",
    "[fd00:ec2::254]",
    "[fc00::1]",
    "[ff02::1]",
    "[fec0::1]",
    "[fd20:ce::254]",
    "100.64.0.1",
    "198.18.0.1",
    "metadata.google.internal.",
];

/// A network where localhost is what it is, with something to steal behind every door.
async fn with_inside(outside: Server) -> Script {
    let script = Script::example(outside).await;
    script.name("localhost", &[&["127.0.0.1", "::1"]]);
    script.name("metadata.google.internal", &[&["169.254.169.254"]]);
    for address in
        ["127.0.0.1:80", "[::1]:80", "0.0.0.0:80", "[::]:80", "169.254.169.254:80", "10.0.0.1:80"]
    {
        script.server_at(address, Server::new().image("/")).await;
    }
    script
}

#[tokio::test]
async fn addresses_inside_are_refused_in_every_spelling() {
    let script = with_inside(Server::new()).await;
    for host in LOOPBACK.iter().chain(&INSIDE) {
        assert_unreachable(script.public(&format!("http://{host}/")).await, host);
        assert_unreachable(script.public(&format!("https://{host}/")).await, host);
    }
    assert_eq!(script.connections(), [""; 0], "nothing was tried");
}

#[tokio::test]
async fn redirects_to_addresses_inside_are_refused_in_every_spelling() {
    let hosts = || LOOPBACK.iter().chain(&INSIDE).enumerate();
    let server = hosts().fold(Server::new(), |server, (number, host)| {
        server
            .redirect(&format!("/{number}"), &format!("http://{host}/"))
            // Without a scheme.
            .redirect(&format!("/{number}/short"), &format!("//{host}/"))
    });
    let script = with_inside(server).await;
    for (number, host) in hosts() {
        assert_unreachable(script.public(&format!("http://example.com/{number}")).await, host);
        assert_unreachable(
            script.public(&format!("http://example.com/{number}/short")).await,
            host,
        );
    }
    let outside = format!("{PUBLIC}:80");
    assert!(script.connections().iter().all(|address| *address == outside));
}

#[tokio::test]
async fn redirects_elsewhere_are_refused() {
    let locations = [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "ftp://example.com/a",
        "gopher://127.0.0.1:6379/_x",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "unix:/run/docker.sock",
        "http://user@example.com/",
        "http://user:password@example.com/",
        "http://example.com:22/",
        "http://example.com:8080/",
        "https://example.com:80/",
        "http://example.com:443/",
        "http://127.0.0.1:6379/",
        "http://example.com:99999/",
        "http://",
        "//",
        "http://[::1",
    ];
    let each = || locations.iter().enumerate();
    let server = each().fold(Server::new(), |server, (number, location)| {
        server.redirect(&format!("/{number}"), location)
    });
    let script = with_inside(server).await;
    for (number, location) in each() {
        let error =
            script.public(&format!("http://example.com/{number}")).await.expect_err(location);
        assert_eq!(error.kind(), ErrorKind::FetchFailed, "{location}: {error}");
    }
    assert_eq!(script.connections().len(), locations.len(), "only the redirects themselves");
}

#[tokio::test]
async fn three_redirects_are_followed_and_no_more() {
    let server = Server::new()
        .redirect("/4", "/3")
        .redirect("/3", "http://example.com/2")
        .redirect("/2", "//example.com/1?a=b")
        .redirect("/1?a=b", "image.png")
        .image("/image.png")
        .redirect("/loop", "/loop");
    let log = server.log();
    let script = Script::example(server).await;
    assert!(script.public("http://example.com/3").await.is_ok());
    assert_eq!(log.heads().len(), 4);
    for path in ["4", "loop"] {
        let before = log.heads().len();
        let error = script.public(&format!("http://example.com/{path}")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FetchFailed);
        assert!(error.to_string().contains("more than 3 times"), "{error}");
        assert_eq!(log.heads().len() - before, 4, "{path}");
    }
}

#[tokio::test]
async fn cookies_and_addresses_are_not_passed_on() {
    let cookie = "HTTP/1.1 302 Found\r\nset-cookie: session=secret; path=/\r\nlocation: \
                  http://other.example/a.png\r\ncontent-length: 0\r\n\r\n";
    let script =
        Script::example(Server::new().at("/?token=secret", [Step::Send(cookie.into())])).await;
    script.name("other.example", &[&["93.184.215.15"]]);
    let other = Server::new().image("/a.png");
    let log = other.log();
    script.server_at("93.184.215.15:80", other).await;
    script.public("http://example.com/?token=secret").await.unwrap();
    script.public("http://other.example/a.png").await.unwrap();
    let heads = log.heads();
    assert_eq!(heads.len(), 2);
    assert_eq!(heads[0], heads[1], "as if it had been asked for directly");
    assert!(
        !heads[0].contains("secret") && !heads[0].to_lowercase().contains("referer"),
        "{heads:?}"
    );
}

#[tokio::test]
async fn a_name_is_looked_up_once_for_each_request_and_its_address_is_kept() {
    let server = Server::new().image("/a.png").redirect("/again", "/a.png");
    let log = server.log();
    let script = with_inside(server).await;
    // The time between check and use, if there were one, would see the second answer.
    script.name("rebind.example", &[&[PUBLIC], &["127.0.0.1"]]);
    script.public("http://rebind.example/a.png").await.unwrap();
    assert_eq!(script.lookups(), ["rebind.example"]);
    assert_unreachable(script.public("http://rebind.example/a.png").await, "the second answer");
    // Between a redirect and its target there are two lookups, and both are checked.
    script.name("rebind.example", &[&[PUBLIC], &["127.0.0.1"]]);
    assert_unreachable(script.public("http://rebind.example/again").await, "the redirect");
    script.name("rebind.example", &[&[PUBLIC], &[PUBLIC]]);
    script.public("http://rebind.example/again").await.unwrap();
    let outside = format!("{PUBLIC}:80");
    assert_eq!(script.connections(), [outside.as_str(); 4]);
    assert_eq!(log.heads().len(), 4);
}

#[tokio::test]
async fn one_address_inside_spoils_all_answers() {
    let script = with_inside(Server::new().image("/")).await;
    for inside in [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "::1",
        "fe80::1",
        "::ffff:93.184.215.14",
        "64:ff9b::5db8:d70e",
    ] {
        script.name("mixed.example", &[&[PUBLIC, inside]]);
        assert_unreachable(script.public("http://mixed.example/").await, inside);
        script.name("mixed.example", &[&[inside, PUBLIC]]);
        assert_unreachable(script.public("http://mixed.example/").await, inside);
    }
    script.name("mixed.example", &[&[]]);
    assert_unreachable(script.public("http://mixed.example/").await, "no address at all");
    assert_unreachable(script.public("http://unknown.example/").await, "no such name");
    assert_eq!(script.connections(), [""; 0]);
}

#[tokio::test]
async fn further_addresses_are_tried_if_one_does_not_answer() {
    let script = Script::example(Server::new().image("/")).await;
    script.name("example.com", &[&["2606:2800:21f::1", "93.184.215.99", PUBLIC]]);
    script.public("http://example.com/").await.unwrap();
    assert_eq!(
        script.connections(),
        ["[2606:2800:21f::1]:80", "93.184.215.99:80", "93.184.215.14:80"]
    );
    // At most four.
    script.name(
        "example.com",
        &[&["93.184.215.1", "93.184.215.2", "93.184.215.3", "93.184.215.4", PUBLIC]],
    );
    assert_unreachable(script.public("http://example.com/").await, "no answer");
    assert_eq!(script.connections().len(), 3 + 4);
}

#[tokio::test]
async fn the_public_address_of_this_machine_is_refused_before_anything_is_sent() {
    let server = Server::new().image("/");
    let log = server.log();
    let script = Script::example(server).await;
    script.state.lock().unwrap().own.push(PUBLIC.parse().unwrap());
    assert_unreachable(script.public("http://example.com/").await, "own address");
    // The server reads the end of the connection as an empty head.
    assert!(log.heads().iter().all(String::is_empty));
    let fetcher = script.fetcher(listed("example.com"));
    assert!(
        fetcher.fetch("http://example.com/", &Budget::new(1000)).await.is_ok(),
        "the operator knows it"
    );
}

#[tokio::test]
async fn the_system_network_knows_its_own_address() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let network = SystemNetwork::new();
    let connected = network.connect(listener.local_addr().unwrap()).await.unwrap();
    assert!(connected.is_own);
    let addresses = network.resolve("127.0.0.1").await.unwrap();
    assert_eq!(addresses, ["127.0.0.1".parse::<IpAddr>().unwrap()]);
}
