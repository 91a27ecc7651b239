//! Encrypted transfers. The files are a certificate of example.com and 93.184.215.14, its key, and the
//! authority that issued it: valid from 2020 to 2120, and trusted by nobody.

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::*;

const AUTHORITY: &[u8] = include_bytes!("authority.der");
const CERTIFICATE: &[u8] = include_bytes!("certificate.der");
const KEY: &[u8] = include_bytes!("key.der");

/// Starts `server` behind TLS at port 443 of the public address.
async fn encrypted(script: &Script, server: Server) {
    let provider = Arc::new(ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(KEY));
    let config = config.with_single_cert(vec![CertificateDer::from(CERTIFICATE)], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let real = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, server) = (acceptor.clone(), server.clone());
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    server.answer(stream).await;
                }
            });
        }
    });
    let address = format!("{PUBLIC}:443").parse().unwrap();
    script.state.lock().unwrap().servers.insert(address, real);
}

/// A fetcher that trusts the authority of the test.
fn trusting(script: &Script) -> Fetcher {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(AUTHORITY)).unwrap();
    let settings = FetchSettings {
        sources: FetchSources::Public,
        timeout: Duration::from_secs(10),
        max_bytes: MAX_BYTES,
    };
    Fetcher::on(Box::new(script.clone()), exchange::tls_with(roots), settings)
}

#[tokio::test]
async fn certificates_are_checked_against_name_and_address() {
    let server = Server::new().image("/a.png");
    let log = server.log();
    let script = Script::default();
    encrypted(&script, server).await;
    script.name("example.com", &[&[PUBLIC]]);
    script.name("other.example", &[&[PUBLIC]]);
    let budget = Budget::new(1000);
    let fetcher = trusting(&script);
    for host in ["example.com", "example.com.", PUBLIC] {
        let photo = fetcher.fetch(&format!("https://{host}/a.png"), &budget).await;
        assert_eq!(photo.expect(host).len(), PNG.len(), "{host}");
    }
    assert_unreachable(fetcher.fetch("https://other.example/a.png", &budget).await, "another name");
    assert_eq!(log.heads().len(), 3);
    // The authorities that the program trusts have not issued it.
    assert_unreachable(script.public("https://example.com/a.png").await, "unknown authority");
    assert_eq!(log.heads().len(), 3);
}

#[tokio::test]
async fn a_server_without_tls_is_like_one_that_does_not_answer() {
    let script = Script::default();
    script.name("example.com", &[&[PUBLIC]]);
    script.server_at(&format!("{PUBLIC}:443"), Server::new().image("/")).await;
    let fetcher = script.fetcher_within(FetchSources::Public, Duration::from_millis(500));
    let error = fetcher.fetch("https://example.com/", &Budget::new(1000)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FetchFailed);
}

#[tokio::test]
async fn redirects_keep_the_encryption() {
    let server = Server::new()
        .redirect("/down", "http://example.com/a.png")
        .redirect("/own", "/a.png")
        .image("/a.png");
    let script =
        Script::example(Server::new().redirect("/up", "https://example.com/a.png").image("/a.png"))
            .await;
    encrypted(&script, server).await;
    let (fetcher, budget) = (trusting(&script), Budget::new(1000));
    fetcher.fetch("https://example.com/own", &budget).await.unwrap();
    fetcher.fetch("http://example.com/up", &budget).await.unwrap();
    let error = fetcher.fetch("https://example.com/down", &budget).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FetchFailed);
    assert_eq!(script.connections().last().unwrap(), &format!("{PUBLIC}:443"));
}
