//! HTTP/1.1 for one page, `/metrics`, on the control threads.
//!
//! Bounds: [`CONNECTIONS_MAX`] connections (more wait in the listen queue), 16 KiB of request head,
//! no request body read, [`HEAD_TIMEOUT`] for a head to arrive, which also ends idle connections. A
//! scrape that cannot be completed answers 503 and says why.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Most connections at a time: several Prometheus servers and a person or two.
const CONNECTIONS_MAX: usize = 16;
/// Most bytes of a request head; hyper's own minimum is 8 KiB.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How long a client may take to send a request head; Prometheus scrapes every 60 s at most by
/// default, so a kept connection is only closed when it has missed one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// Content type of the text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Makes the page.
pub(crate) trait Scrape: Send + Sync + 'static {
    /// The page, or why there is none.
    fn scrape(&self) -> impl Future<Output = Result<Vec<u8>, String>> + Send;
}

/// Serves until the task is dropped.
pub(crate) async fn serve<S: Scrape>(listener: TcpListener, scraper: Arc<S>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors or the like: give others time to close theirs.
                tracing::warn!(%error, "metrics: cannot accept a connection");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let scraper = Arc::clone(&scraper);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&scraper)));
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "metrics: connection ended");
            }
            drop(permit);
        });
    }
}

async fn answer<S: Scrape>(
    request: Request<Incoming>,
    scraper: Arc<S>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() != "/metrics" {
        return Ok(plain(StatusCode::NOT_FOUND, "only /metrics is here\n"));
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(response);
    }
    Ok(match scraper.scrape().await {
        Ok(page) => {
            let mut response = Response::new(Full::new(Bytes::from(page)));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT));
            response
        }
        Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, &format!("{why}\n")),
    })
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    struct Page(Result<Vec<u8>, String>);

    impl Scrape for Page {
        async fn scrape(&self) -> Result<Vec<u8>, String> {
            self.0.clone()
        }
    }

    async fn started(page: Page) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, Arc::new(page)));
        address
    }

    async fn exchange(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).await.unwrap();
        String::from_utf8(reply).unwrap()
    }

    #[tokio::test]
    async fn the_page_and_nothing_else() {
        let address = started(Page(Ok(b"up 1\n".to_vec()))).await;
        let get = |path| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let reply = exchange(address, get("/metrics").as_bytes()).await;
        assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
        assert!(reply.contains("content-type: text/plain; version=0.0.4"), "{reply}");
        assert!(reply.ends_with("\r\n\r\nup 1\n"), "{reply}");
        let reply = exchange(address, get("/").as_bytes()).await;
        assert!(reply.starts_with("HTTP/1.1 404 "), "{reply}");
        let post = b"POST /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let reply = exchange(address, post).await;
        assert!(reply.starts_with("HTTP/1.1 405 ") && reply.contains("allow: GET"), "{reply}");
    }

    #[tokio::test]
    async fn a_failed_scrape_says_why() {
        let address = started(Page(Err("core 1 does not answer".to_owned()))).await;
        let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let reply = exchange(address, request).await;
        assert!(reply.starts_with("HTTP/1.1 503 "), "{reply}");
        assert!(reply.ends_with("core 1 does not answer\n"), "{reply}");
    }

    #[tokio::test]
    async fn an_endless_head_is_refused() {
        let address = started(Page(Ok(Vec::new()))).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let line = format!("GET /metrics HTTP/1.1\r\nx: {}", "y".repeat(4 * HEAD_BYTES_MAX));
        // The server may close before all is sent.
        let _ = stream.write_all(line.as_bytes()).await;
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply).await;
        let reply = String::from_utf8_lossy(&reply);
        assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 431 "), "{reply}");
    }

    #[tokio::test]
    async fn more_connections_than_allowed_wait_their_turn() {
        let address = started(Page(Ok(b"x 1\n".to_vec()))).await;
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let waiting = tokio::spawn(async move { exchange(address, request).await });
        // Closing one lets the waiting one in; without the bound it would be in already, without
        // the release it never would.
        drop(idle.pop());
        assert!(waiting.await.unwrap().starts_with("HTTP/1.1 200 "));
    }
}
