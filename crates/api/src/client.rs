//! The API's client: one connection a request, on a unix socket or TCP.

use crate::{
    frames::{self, Frame},
    types::{ApiError, MachineList, Names, Run, Unit, UnitChange, UnitList, UnitsChanged, Watched},
};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use http_body_util::{BodyExt, BodyStream, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response,
    body::{Frame as BodyFrame, Incoming},
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use model::{MachineId, UnitName};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    convert::Infallible, fmt, net::SocketAddr, path::PathBuf, process::Stdio, str::FromStr, time::Duration,
};
use tokio::{
    net::{TcpStream, UnixStream},
    process::{Child, Command},
};

/// A machine on the same network accepts within milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The API itself waits up to 5 s for the hub.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Where an API is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// On a unix socket: `unix:///run/muster/muster.sock`.
    Unix(PathBuf),
    /// On TCP: `http://10.0.0.1:49153`.
    Tcp(SocketAddr),
    /// Behind a program, started for each request, that passes its standard input and output on:
    /// `ssh m1 muster fd-forward /run/muster/muster.sock`.
    Program(Vec<String>),
}

/// A request's body, whole or in pieces.
type RequestBody = UnsyncBoxBody<Bytes, Infallible>;

impl FromStr for Endpoint {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            format!(
                "`{text}` is no API endpoint: `unix:///run/muster/muster.sock` or `http://10.0.0.1:49153` are"
            )
        };
        if let Some(path) = text.strip_prefix("unix://").filter(|path| path.starts_with('/')) {
            return Ok(Self::Unix(path.into()));
        }
        let address = text.strip_prefix("http://").ok_or_else(wrong)?.trim_end_matches('/');
        address.parse().map(Self::Tcp).map_err(|_| wrong())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Program(words) => write!(f, "the far end of `{}`", words.join(" ")),
        }
    }
}

/// Why there is no answer, or not the one wanted.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no Muster daemon answers at {endpoint}: {reason}")]
    Unreachable {
        /// Where it was looked for.
        endpoint: Endpoint,
        /// What the system said.
        reason: String,
    },
    /// The connection broke.
    #[error("the connection to {endpoint} broke: {reason}")]
    Broken {
        /// Where it went.
        endpoint: Endpoint,
        /// What the system said.
        reason: String,
    },
    /// The API answered no.
    #[error(transparent)]
    Refused(#[from] ApiError),
}

impl ClientError {
    /// As an answer to somebody else.
    pub(crate) fn into_api(self) -> ApiError {
        match self {
            Self::Refused(error) => error,
            other => ApiError::unavailable(other),
        }
    }
}

/// Talks to one API.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
    header: Option<(&'static str, HeaderValue)>,
}

impl Client {
    /// Connects when first used.
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, header: None }
    }

    pub(crate) fn with_header(self, name: &'static str, value: HeaderValue) -> Self {
        Self { header: Some((name, value)), ..self }
    }

    /// All machines.
    pub async fn machines(&self) -> Result<MachineList, ClientError> {
        self.ask(Method::GET, "/v1/machines", None::<&()>).await
    }

    /// All units.
    pub async fn units(&self) -> Result<UnitList, ClientError> {
        self.ask(Method::GET, "/v1/units", None::<&()>).await
    }

    /// One unit.
    pub async fn unit(&self, name: &UnitName) -> Result<Unit, ClientError> {
        self.ask(Method::GET, &format!("/v1/units/{}", path_segment(name)), None::<&()>).await
    }

    /// Makes all of `changes`, or none.
    pub async fn change(&self, changes: &[UnitChange]) -> Result<UnitsChanged, ClientError> {
        self.ask(Method::POST, "/v1/units", Some(changes)).await
    }

    /// Makes the cluster forget units.
    pub async fn destroy(&self, units: &[UnitName]) -> Result<UnitsChanged, ClientError> {
        self.ask(Method::POST, "/v1/units/destroy", Some(&Names { units: units.to_vec() })).await
    }

    /// Each of `units` as it is, then again at every change.
    pub async fn watch(
        &self,
        units: &[UnitName],
    ) -> Result<impl Stream<Item = Result<Watched, ClientError>> + Unpin, ClientError> {
        let response =
            self.send(Method::POST, "/v1/units/watch", whole(Some(&Names { units: units.to_vec() }))).await?;
        let chunks = self.chunks(response);
        let state = (Box::pin(chunks), BytesMut::new(), self.endpoint.clone());
        Ok(Box::pin(futures_util::stream::unfold(state, |(mut chunks, mut buffer, endpoint)| async move {
            loop {
                if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                    let line = buffer.split_to(end + 1);
                    let watched = serde_json::from_slice(&line).map_err(|error| ClientError::Broken {
                        endpoint: endpoint.clone(),
                        reason: error.to_string(),
                    });
                    return Some((watched, (chunks, buffer, endpoint)));
                }
                match chunks.next().await? {
                    Ok(chunk) => buffer.extend_from_slice(&chunk),
                    Err(error) => return Some((Err(error), (chunks, buffer, endpoint))),
                }
            }
        })))
    }

    /// Runs something beside a unit, on its machine.
    pub async fn run(
        &self,
        unit: &UnitName,
        run: &Run,
    ) -> Result<impl Stream<Item = Result<Frame, ClientError>> + Unpin, ClientError> {
        Ok(self.framed(self.run_raw(unit, run).await?))
    }

    /// The same on one of the machines of a unit that has several.
    pub async fn run_there(
        &self,
        machine: &MachineId,
        unit: &UnitName,
        run: &Run,
    ) -> Result<impl Stream<Item = Result<Frame, ClientError>> + Unpin, ClientError> {
        Ok(self.framed(self.run_there_raw(machine, unit, run).await?))
    }

    /// Runs a program on a machine itself. The first frame of `input` says which; the program is killed when
    /// `input` ends.
    pub async fn shell(
        &self,
        machine: &MachineId,
        input: impl Stream<Item = Frame> + Send + 'static,
    ) -> Result<impl Stream<Item = Result<Frame, ClientError>> + Unpin, ClientError> {
        Ok(self.framed(self.shell_raw(machine, input.map(|frame| frame.encode())).await?))
    }

    /// [`Self::run`], undecoded.
    pub(crate) async fn run_raw(
        &self,
        unit: &UnitName,
        run: &Run,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + Send + use<>, ClientError> {
        let path = format!("/v1/units/{}/run", path_segment(unit));
        Ok(self.chunks(self.send(Method::POST, &path, whole(Some(run))).await?))
    }

    /// [`Self::run_there`], undecoded.
    pub(crate) async fn run_there_raw(
        &self,
        machine: &MachineId,
        unit: &UnitName,
        run: &Run,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + Send + use<>, ClientError> {
        let path = format!("/v1/machines/{machine}/units/{}/run", path_segment(unit));
        Ok(self.chunks(self.send(Method::POST, &path, whole(Some(run))).await?))
    }

    /// [`Self::shell`], neither encoded nor decoded.
    pub(crate) async fn shell_raw<I>(
        &self,
        machine: &MachineId,
        input: I,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + Send + use<I>, ClientError>
    where
        I: Stream<Item = Bytes> + Send + 'static,
    {
        let body = StreamBody::new(input.map(|chunk| Ok(BodyFrame::data(chunk)))).boxed_unsync();
        let path = format!("/v1/machines/{machine}/shell");
        Ok(self.chunks(self.send(Method::POST, &path, body).await?))
    }

    fn framed(
        &self,
        chunks: impl Stream<Item = Result<Bytes, ClientError>> + Send + 'static,
    ) -> impl Stream<Item = Result<Frame, ClientError>> + Unpin {
        let endpoint = self.endpoint.clone();
        frames::decoded(chunks.map(Result::ok)).map(move |frame| {
            frame.map_err(|reason| ClientError::Broken {
                endpoint: endpoint.clone(),
                reason: reason.to_owned(),
            })
        })
    }

    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + ?Sized)>,
    ) -> Result<T, ClientError> {
        let response = self.send(method, path, whole(body)).await?;
        let bytes = response.into_body().collect().await.map_err(|error| self.broken(&error))?.to_bytes();
        serde_json::from_slice(&bytes).map_err(|error| self.broken(&error))
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: RequestBody,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "muster")
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .expect("paths are made of unit names, which are ASCII");
        if let Some((name, value)) = &self.header {
            request.headers_mut().insert(HeaderName::from_static(name), value.clone());
        }
        let exchange = async {
            let response = match &self.endpoint {
                Endpoint::Unix(path) => {
                    let stream = self.connect(UnixStream::connect(path)).await?;
                    self.exchange(stream, request, None).await?
                }
                Endpoint::Tcp(address) => {
                    let stream = self.connect(TcpStream::connect(address)).await?;
                    self.exchange(stream, request, None).await?
                }
                Endpoint::Program(words) => {
                    let (program, arguments) = words.split_first().expect("it has a name");
                    let mut child = Command::new(program)
                        .args(arguments)
                        .stdin(Stdio::piped())
                        .stdout(Stdio::piped())
                        .kill_on_drop(true)
                        .spawn()
                        .map_err(|error| self.unreachable(&error))?;
                    let ends = (child.stdout.take(), child.stdin.take());
                    let (Some(output), Some(input)) = ends else { unreachable!("both are piped") };
                    self.exchange(tokio::io::join(output, input), request, Some(child)).await?
                }
            };
            if response.status().is_success() {
                return Ok(response);
            }
            let code = response.status().as_u16();
            let body = response.into_body().collect().await.map_err(|error| self.broken(&error))?;
            Err(ApiError::from_body(code, &body.to_bytes()).into())
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.broken(&format_args!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))),
        }
    }

    async fn connect<T>(&self, connect: impl Future<Output = std::io::Result<T>>) -> Result<T, ClientError> {
        let reason = match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
        };
        Err(self.unreachable(&reason))
    }

    fn unreachable(&self, reason: &dyn fmt::Display) -> ClientError {
        ClientError::Unreachable { endpoint: self.endpoint.clone(), reason: reason.to_string() }
    }

    async fn exchange<T>(
        &self,
        stream: T,
        request: Request<RequestBody>,
        behind: Option<Child>,
    ) -> Result<Response<Incoming>, ClientError>
    where
        T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error))?;
        // Ends by itself: when the body was read, or when it is dropped.
        tokio::spawn(async move {
            // What went wrong shows where the body is read.
            let _ = connection.await;
            drop(behind);
        });
        sender.send_request(request).await.map_err(|error| self.broken(&error))
    }

    pub(crate) fn chunks(
        &self,
        response: Response<Incoming>,
    ) -> impl Stream<Item = Result<Bytes, ClientError>> + Send + use<> {
        let endpoint = self.endpoint.clone();
        BodyStream::new(response.into_body()).filter_map(move |frame| {
            let chunk = match frame {
                Ok(frame) => frame.into_data().ok().map(Ok),
                Err(error) => {
                    Some(Err(ClientError::Broken { endpoint: endpoint.clone(), reason: error.to_string() }))
                }
            };
            std::future::ready(chunk)
        })
    }

    pub(crate) fn broken(&self, reason: &dyn fmt::Display) -> ClientError {
        ClientError::Broken { endpoint: self.endpoint.clone(), reason: reason.to_string() }
    }
}

/// A body that is known as a whole: a value as JSON, or nothing.
pub(crate) fn whole(value: Option<&(impl Serialize + ?Sized)>) -> RequestBody {
    let body = value.map(serde_json::to_vec).transpose().expect("API types always render");
    Full::new(Bytes::from(body.unwrap_or_default())).boxed_unsync()
}

/// Unit names consist of characters that a path may hold, but for `\`.
pub(crate) fn path_segment(name: &UnitName) -> String {
    name.as_str().replace('\\', "%5C").replace('@', "%40")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_refused() {
        for text in ["unix:///run/muster/muster.sock", "http://10.0.0.1:49153"] {
            assert_eq!(text.parse::<Endpoint>().expect(text).to_string(), text);
        }
        for text in ["", "unix://run/x", "10.0.0.1:49153", "http://m1:49153", "https://10.0.0.1:1"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
