//! Who may ask, and how much: keys, compared in constant time, with a rate and a number of requests at one time.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio_stream::Stream;

use super::AppState;
use super::error::ApiError;

/// The keys of a server.
#[derive(Debug, Default)]
pub(super) struct Keys {
    keys: Vec<Arc<Key>>,
}

/// One key.
#[derive(Debug)]
struct Key {
    digest: [u8; 32],
    is_admin: bool,
    /// Requests at one time; 0 is any number.
    concurrent: usize,
    /// Requests a minute; 0 is any number.
    per_minute: f64,
    running: AtomicUsize,
    /// Requests that may come at once, as of a moment.
    bucket: Mutex<(f64, Instant)>,
}

/// What the holder of a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) is_admin: bool,
}

fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

impl Keys {
    pub(super) fn new(users: &[String], admins: &[String], concurrent: usize, per_minute: usize) -> Self {
        let key = |secret: &String, is_admin| {
            let per_minute = per_minute as f64;
            Arc::new(Key {
                digest: digest(secret),
                is_admin,
                concurrent,
                per_minute,
                running: AtomicUsize::new(0),
                bucket: Mutex::new((per_minute, Instant::now())),
            })
        };
        let users = users.iter().map(|secret| key(secret, false));
        Self { keys: users.chain(admins.iter().map(|secret| key(secret, true))).collect() }
    }

    /// The key that a request shows. Takes as long whichever it is.
    fn find(&self, headers: &HeaderMap) -> Option<&Arc<Key>> {
        let shown = digest(&secret(headers)?);
        let mut found = None;
        for key in &self.keys {
            if bool::from(key.digest.ct_eq(&shown)) {
                found = Some(key);
            }
        }
        found
    }
}

/// The secret of a `Bearer` header; or the password of a `Basic` one, which browsers send.
fn secret(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(BASE64_STANDARD.decode(rest.trim()).ok()?).ok()?;
    Some(decoded.split_once(':')?.1.to_owned())
}

impl Key {
    /// One more request, if its limits allow it.
    fn admit(self: &Arc<Self>) -> Result<Admitted, ApiError> {
        let refuse = |message: &str| ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        if self.per_minute > 0.0 {
            let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
            let (left, since) = *bucket;
            let left = (left + since.elapsed().as_secs_f64() * self.per_minute / 60.0).min(self.per_minute);
            *bucket = (left, Instant::now());
            if left < 1.0 {
                return Err(refuse("this key's requests a minute are used up"));
            }
            bucket.0 -= 1.0;
        }
        let running = self.running.fetch_add(1, Ordering::Relaxed);
        let admitted = Admitted(Arc::clone(self));
        if self.concurrent > 0 && running >= self.concurrent {
            return Err(refuse("this key has as many requests running as it may"));
        }
        Ok(admitted)
    }
}

/// A request that counts until it is dropped.
struct Admitted(Arc<Key>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Lets requests with a valid key pass. Without any keys everything is allowed.
pub(super) async fn check(State(state): State<Arc<AppState>>, mut request: Request, next: Next) -> Response {
    if state.keys.keys.is_empty() {
        request.extensions_mut().insert(Caller { is_admin: true });
        return next.run(request).await;
    }
    let Some(key) = state.keys.find(request.headers()) else {
        let error = ApiError::new(StatusCode::UNAUTHORIZED, "authentication_error", "a valid key is needed");
        let mut response = error.into_response();
        let challenge = header::HeaderValue::from_static("Basic realm=\"tunesmith\", charset=\"UTF-8\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        return response;
    };
    let admitted = match key.admit() {
        Ok(admitted) => admitted,
        Err(error) => return error.into_response(),
    };
    request.extensions_mut().insert(Caller { is_admin: key.is_admin });
    let response = next.run(request).await;
    // A stream counts until its end.
    response.map(|body| {
        use axum::body::HttpBody;
        if body.size_hint().exact().is_some() {
            return body;
        }
        Body::from_stream(Held { body: body.into_data_stream(), _admitted: admitted })
    })
}

/// A body that holds on to its request's place.
struct Held {
    body: BodyDataStream,
    _admitted: Admitted,
}

impl Stream for Held {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.body).poll_next(context)
    }
}

/// Makes sure that a caller may change what is served.
pub(super) fn require_admin(caller: Caller) -> Result<(), ApiError> {
    if caller.is_admin {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::FORBIDDEN, "permission_error", "this needs an administrator's key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        headers
    }

    #[test]
    fn keys_are_found_by_bearer_and_basic() {
        let keys = Keys::new(&["user".into()], &["root".into()], 0, 0);
        assert!(!keys.find(&headers("Bearer user")).unwrap().is_admin);
        assert!(keys.find(&headers("bearer root")).unwrap().is_admin);
        let basic = format!("Basic {}", BASE64_STANDARD.encode("anyone:root"));
        assert!(keys.find(&headers(&basic)).unwrap().is_admin);
        for wrong in ["Bearer", "Bearer use", "Bearer userr", "user", "Basic ###", "Digest user"] {
            assert!(keys.find(&headers(wrong)).is_none(), "{wrong}");
        }
        assert!(keys.find(&HeaderMap::new()).is_none());
    }

    #[test]
    fn a_key_has_a_rate_and_a_number_at_one_time() {
        let keys = Keys::new(&["user".into()], &[], 2, 3);
        let key = &keys.keys[0];
        let first = key.admit().ok().unwrap();
        let _second = key.admit().ok().unwrap();
        assert!(key.admit().is_err(), "a third at one time");
        drop(first);
        assert!(key.admit().is_err(), "a fourth within a minute");
    }
}
