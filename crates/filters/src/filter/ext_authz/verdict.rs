//! The answer: what a service has decided.

use std::borrow::Cow;
use std::collections::BTreeMap;

use auth::check_response::HttpResponse;
use bytes::Bytes;
use meltemi_proto::envoy::service::auth::v3 as auth;
use meltemi_proto::envoy::r#type::v3::HttpStatus;

use super::mutation::{self, Mutation};
use super::{HttpService, Names};
use crate::head::{RequestHead, ResponseHead};
use crate::http::grpc_call::{self, GrpcError};
use crate::http::phase::{CallResult, FetchError, Fetched};
use crate::metadata::Value;

/// The most bytes that an answer may add to a request and its response: as much as a head may have.
const MAX_MUTATIONS: usize = 64 * 1024;

const TOO_LONG: &str = "the answer adds more than 64 KiB of headers";

/// An answer, with the dynamic metadata that comes with it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) verdict: Verdict,
    pub(super) metadata: Option<Value>,
}

/// What becomes of the request.
#[derive(Debug)]
pub(super) enum Verdict {
    Allowed(Box<Allowed>),
    Denied(Box<Refusal>),
    /// Nothing was decided: why, and what the service wants said.
    Error(Option<Box<Refusal>>, Cow<'static, str>),
    /// The request cannot be put to the service. The client has chosen its bytes, so that it never
    /// passes, whatever happens in an outage.
    Unaskable(Cow<'static, str>),
}

/// The changes that go with leave to pass.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Allowed {
    pub(super) request: Vec<Mutation>,
    pub(super) remove: Vec<String>,
    pub(super) set_query: Vec<(String, String)>,
    pub(super) remove_query: Vec<String>,
    pub(super) response: Vec<Mutation>,
}

/// The answer that the client gets instead of a response.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    /// `None` where the filter's own status counts.
    pub(super) status: Option<u16>,
    pub(super) headers: Vec<Mutation>,
    pub(super) body: Bytes,
}

impl Allowed {
    /// Whether the request's route may be another one after these changes.
    pub(super) fn changes_request(&self) -> bool {
        !(self.request.is_empty()
            && self.remove.is_empty()
            && self.set_query.is_empty()
            && self.remove_query.is_empty())
    }

    /// Bytes of all names and values.
    fn len(&self) -> usize {
        let headers = self.request.iter().chain(&self.response);
        let parameters = self.set_query.iter();
        headers.map(Mutation::len).sum::<usize>()
            + parameters
                .map(|(name, value)| name.len() + value.len())
                .sum::<usize>()
    }

    pub(super) fn is_valid(&self) -> bool {
        let query = |text: &str| text.bytes().all(|byte| byte > 0x20 && byte < 0x7f);
        let mut headers = self.request.iter().chain(&self.response);
        let mut parameters = self.set_query.iter();

        headers.all(Mutation::is_valid)
            && parameters.all(|(name, value)| query(name) && query(value))
    }

    /// Changes the request.
    pub(super) fn apply(&self, head: &mut RequestHead) {
        mutation::apply(&self.request, head);
        for name in &self.remove {
            // A request cannot be without its line, its host and its framing.
            let name = name.to_ascii_lowercase();
            let removable = !name.starts_with(':') && !crate::header_ops::is_framing(&name);
            if removable {
                head.remove(&name);
            }
        }
        mutation::change_query(head, &self.set_query, &self.remove_query);
    }
}

impl Refusal {
    pub(super) fn is_valid(&self) -> bool {
        self.headers.iter().all(Mutation::is_valid)
    }

    fn of(message: auth::DeniedHttpResponse) -> Self {
        Self {
            status: message.status.as_ref().and_then(status),
            headers: Mutation::all(message.headers),
            body: message.body.into(),
        }
    }
}

/// `None` for the zero that stands for no status, and for what is no status of a final response.
fn status(message: &HttpStatus) -> Option<u16> {
    let status = u16::try_from(message.code).ok()?;
    (200..600).contains(&status).then_some(status)
}

/// Reads the answer of a gRPC service.
pub(super) fn of_grpc(result: CallResult) -> Answer {
    match grpc_call::answer::<auth::CheckResponse>(result) {
        Ok(response) => of_response(response),
        Err(error) => Answer {
            verdict: match error {
                GrpcError::Fetch(error) => unanswered(&error),
                other => Verdict::Error(None, other.to_string().into()),
            },
            metadata: None,
        },
    }
}

fn unanswered(error: &FetchError) -> Verdict {
    let how = error.to_string().into();
    match error.is_unsendable {
        true => Verdict::Unaskable(how),
        false => Verdict::Error(None, how),
    }
}

fn of_response(response: auth::CheckResponse) -> Answer {
    let auth::CheckResponse {
        status,
        dynamic_metadata,
        http_response,
    } = response;

    let mut metadata = dynamic_metadata;
    let code = status.map_or(0, |status| status.code);
    let verdict = match (code, http_response) {
        (0, Some(HttpResponse::OkResponse(ok))) => {
            #[expect(deprecated, reason = "where it is set, it replaces the newer field")]
            if let Some(own) = ok.dynamic_metadata {
                metadata = Some(own);
            }
            let parameters = ok.query_parameters_to_set.into_iter();
            let allowed = Allowed {
                request: Mutation::all(ok.headers),
                remove: ok.headers_to_remove,
                set_query: parameters.map(|one| (one.key, one.value)).collect(),
                remove_query: ok.query_parameters_to_remove,
                response: Mutation::all_of_response(ok.response_headers_to_add),
            };
            match allowed.len() > MAX_MUTATIONS {
                true => Verdict::Error(None, TOO_LONG.into()),
                false => Verdict::Allowed(Box::new(allowed)),
            }
        }
        (0, _) => Verdict::Allowed(Box::default()),
        (_, Some(HttpResponse::ErrorResponse(error))) => Verdict::Error(
            Some(Box::new(Refusal::of(error))),
            "the service failed".into(),
        ),
        (_, Some(HttpResponse::DeniedResponse(denied))) => {
            Verdict::Denied(Box::new(Refusal::of(denied)))
        }
        (_, Some(HttpResponse::OkResponse(_)) | None) => Verdict::Denied(Box::default()),
    };

    Answer {
        verdict,
        metadata: metadata.as_ref().map(Value::from_struct),
    }
}

impl HttpService {
    /// Reads the answer of an HTTP service: 200 allows, other statuses below 500 deny, and what is
    /// neither is a failure.
    pub(super) fn verdict(&self, result: CallResult) -> Answer {
        let error = |how: Cow<'static, str>| Answer {
            verdict: Verdict::Error(None, how),
            metadata: None,
        };
        let fetched = match result {
            CallResult::Fetched(Ok(fetched)) => fetched,
            CallResult::Fetched(Err(why)) => {
                return Answer {
                    verdict: unanswered(&why),
                    metadata: None,
                };
            }
            CallResult::Slept => return error("no response".into()),
        };

        let Fetched { head, body, .. } = *fetched;
        let verdict = match head.status {
            200 => Verdict::Allowed(Box::new(self.allowed(&head))),
            // Others than these are failures, or no final responses at all.
            status @ 201..500 => Verdict::Denied(Box::new(Refusal {
                status: Some(status),
                headers: self.refusal_headers(&head),
                body,
            })),
            status => return error(format!("status {status}").into()),
        };

        Answer {
            verdict,
            metadata: metadata_of(&head, &self.metadata),
        }
    }

    fn allowed(&self, head: &ResponseHead) -> Allowed {
        let mut allowed = Allowed::default();
        for (name, value) in head.iter() {
            if name == HEADERS_TO_REMOVE {
                let names = String::from_utf8_lossy(value);
                let names = names.split(',').map(str::trim);
                let names = names.filter(|name| !name.is_empty());
                allowed.remove.extend(names.map(str::to_owned));
                continue;
            }
            if self.upstream.has(name) {
                allowed.request.push(Mutation::set(name, value));
            }
            if self.upstream_append.has(name) {
                allowed.request.push(Mutation::add(name, value));
            }
            if self.client_on_success.has(name) {
                allowed.response.push(Mutation::add(name, value));
            }
        }

        allowed
    }

    fn refusal_headers(&self, head: &ResponseHead) -> Vec<Mutation> {
        // What Envoy adds to a list of its own accord. Its length is the reply's own.
        let always = |name: &str| matches!(name, "www-authenticate" | "location");
        let names = self.client.as_ref();
        head.iter()
            .filter(|(name, _)| names.is_none_or(|names| names.has(name) || always(name)))
            .filter(|(name, _)| *name != HEADERS_TO_REMOVE)
            .map(|(name, value)| Mutation::add(name, value))
            .collect()
    }
}

/// An HTTP service's list of headers that are removed from the request.
const HEADERS_TO_REMOVE: &str = "x-envoy-auth-headers-to-remove";

fn metadata_of(head: &ResponseHead, names: &Names) -> Option<Value> {
    let fields: BTreeMap<_, _> = head
        .iter()
        .filter(|(name, _)| names.has(name))
        .map(|(name, value)| (name.into(), Value::string(&String::from_utf8_lossy(value))))
        .collect();

    (!fields.is_empty()).then_some(Value::Struct(fields))
}
