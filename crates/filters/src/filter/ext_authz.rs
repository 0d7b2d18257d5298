//! External authorization: `envoy.filters.http.ext_authz`. Another service decides whether a
//! request may pass, over gRPC or HTTP.
//!
//! [`check`] makes the question, [`verdict`] reads the answer, [`mutation`] applies what the answer
//! asks for; this file decides when to ask and what becomes of the request. [`connection`] does the
//! same for TCP connections.

mod check;
mod compile;
mod connection;
mod mutation;
#[cfg(test)]
mod tests;
mod verdict;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use self::check::Held;
pub use self::connection::{ConnectionAuthz, ConnectionRefusal};
use self::mutation::Mutation;
use self::verdict::{Allowed, Refusal, Verdict};
use crate::counter::Counter;
use crate::flag::ResponseFlag;
use crate::header_ops::HeaderOps;
use crate::http::context::{RequestContext, ResponseContext};
use crate::http::phase::{Beyond, Call, CallResult, Event, Hold, Step};
use crate::matcher::{Fraction, MetadataMatch, StringMatch};
use crate::metadata::Value;
use crate::reply::{Cause, LocalReply};

/// When which service is asked what, and what happens where it does not answer.
#[derive(Debug)]
pub struct ExtAuthz {
    service: Service,
    enabled: Enabled,
    body: Option<BodySettings>,
    failure: Failure,
    /// Routes are selected anew if the answer changes the request.
    clear_route_cache: bool,
    /// An answer with invalid names or values is answered with 500; else those are left out.
    validate_mutations: bool,
    /// Dynamic metadata of the answer is taken over.
    ingests_metadata: bool,
    /// Longer bodies of refusals are cut.
    max_denied_body: Option<usize>,
    question: Question,
    counters: Counters,
}

/// The service that decides.
#[derive(Debug)]
enum Service {
    Grpc(GrpcService),
    Http(Box<HttpService>),
}

/// `grpc_service.envoy_grpc`.
#[derive(Debug)]
struct GrpcService {
    cluster: Arc<str>,
    authority: Box<str>,
    timeout: Option<Duration>,
    initial_metadata: HeaderOps,
}

/// `http_service`.
#[derive(Debug)]
struct HttpService {
    cluster: Arc<str>,
    timeout: Option<Duration>,
    path: PathRule,
    headers_to_add: HeaderOps,
    /// Headers of a 200 that replace those of the request.
    upstream: Names,
    /// Headers of a 200 that are added to those of the request.
    upstream_append: Names,
    /// Headers of a refusal that the client gets; all if `None`.
    client: Option<Names>,
    /// Headers of a 200 that the client gets.
    client_on_success: Names,
    /// Headers of any answer that become dynamic metadata.
    metadata: Names,
}

/// The path that an HTTP service is asked with.
#[derive(Debug)]
enum PathRule {
    /// Before the request's own.
    Prefix(Box<str>),
    /// Instead of the request's own.
    Override(Box<str>),
}

/// Header names by pattern; names are lower case.
#[derive(Debug, Default)]
struct Names(Vec<StringMatch>);

impl Names {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|own| own.is_match(name.as_bytes()))
    }
}

/// Which requests are checked.
#[derive(Debug)]
struct Enabled {
    fraction: Fraction,
    /// Istio: a shadow rule of RBAC before this filter matched.
    metadata: Option<MetadataMatch>,
    /// Requests that are not checked are refused.
    deny_at_disable: bool,
}

/// What happens where the service does not answer.
#[derive(Debug)]
struct Failure {
    /// The request passes.
    allow: bool,
    /// A request that passes says so to the upstream.
    header: bool,
    /// The status where it does not pass.
    status: u16,
}

/// The parts of a request that a check carries.
#[derive(Debug)]
struct Question {
    /// Headers that are told; to gRPC all and to HTTP a few if `None`.
    allowed_headers: Option<Names>,
    disallowed_headers: Names,
    /// Header values as they are, each line by itself.
    raw_headers: bool,
    metadata: Box<[Box<str>]>,
    route_metadata: Box<[Box<str>]>,
    peer_certificate: bool,
    tls_session: bool,
}

/// The part of the body that a check carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BodySettings {
    max_bytes: usize,
    /// A longer body is sent in part; else the request is refused with 413.
    allow_partial: bool,
    as_bytes: bool,
}

/// What a route says of the filter.
#[derive(Debug)]
pub enum PerRoute {
    /// It is off.
    Disabled,
    /// It is on, even if the chain has it off.
    Enabled,
    /// It asks in another way.
    Settings(CheckSettings),
}

/// How a route asks. Of several levels of the route the most specific comes first.
#[derive(Debug, Default)]
pub struct CheckSettings {
    context_extensions: Vec<(String, String)>,
    body: BodyRule,
}

/// What a route says of the body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum BodyRule {
    #[default]
    Inherit,
    Off,
    Own(BodySettings),
}

/// `ext_authz.[stat_prefix.]*`; `None` where there are too many names.
#[derive(Debug)]
struct Counters {
    ok: Option<Counter>,
    denied: Option<Counter>,
    error: Option<Counter>,
    failure_mode_allowed: Option<Counter>,
    disabled: Option<Counter>,
    invalid: Option<Counter>,
    ignored_dynamic_metadata: Option<Counter>,
}

/// Kept while the service is asked.
struct Asked {
    at: Duration,
}

/// Kept for the response of a request that passed.
struct ForResponse(Vec<Mutation>);

const METADATA_NAMESPACE: &str = "envoy.filters.http.ext_authz";
const FAILURE_MODE_ALLOWED: &str = "x-envoy-auth-failure-mode-allowed";

impl ExtAuthz {
    pub(crate) fn on_request(
        &self,
        routes: &[&CheckSettings],
        event: Event<'_>,
        cx: &mut RequestContext<'_>,
    ) -> Step {
        match event {
            Event::Head => self.on_head(routes, cx),
            Event::Held { body, ended } => {
                let settings = self.body_settings(routes);
                let held = settings.map(|settings| Held::of(body, ended, settings));
                self.ask(routes, held, cx)
            }
            Event::Called(result) => self.on_answer(result, cx),
        }
    }

    fn on_head(&self, routes: &[&CheckSettings], cx: &mut RequestContext<'_>) -> Step {
        // As Envoy: a request without a route gets its 404 unasked.
        if cx.route_metadata.is_none() {
            return Step::Continue;
        }

        if !self.enabled.includes(cx) {
            count(&self.counters.disabled, cx);
            return match self.enabled.deny_at_disable {
                true => self.failed(None, "not enabled for this request".into(), cx),
                false => Step::Continue,
            };
        }

        match self.body_settings(routes) {
            Some(settings) if cx.has_body => Step::Hold(settings.hold()),
            _ => self.ask(routes, None, cx),
        }
    }

    fn ask(
        &self,
        routes: &[&CheckSettings],
        body: Option<Held<'_>>,
        cx: &mut RequestContext<'_>,
    ) -> Step {
        let fetch = match &self.service {
            Service::Grpc(service) => {
                let message = self.question.grpc(&context_extensions(routes), body, cx);
                service.fetch(&message, cx)
            }
            Service::Http(service) => service.fetch(self.question.http(body, cx), cx),
        };

        cx.keep(Asked { at: cx.now });
        Step::Call(Call::Fetch(Box::new(fetch)))
    }

    fn on_answer(&self, result: CallResult, cx: &mut RequestContext<'_>) -> Step {
        let answer = match &self.service {
            Service::Grpc(_) => verdict::of_grpc(result),
            Service::Http(service) => service.verdict(result),
        };

        let asked = cx.take::<Asked>();
        self.note_metadata(answer.metadata, &answer.verdict, asked, cx);

        match answer.verdict {
            Verdict::Allowed(allowed) => self.allow(*allowed, cx),
            Verdict::Denied(refusal) => self.deny(*refusal, cx),
            Verdict::Unaskable(how) => {
                count(&self.counters.error, cx);
                self.failed(None, how, cx)
            }
            Verdict::Error(refusal, how) => {
                count(&self.counters.error, cx);
                if !self.failure.allow {
                    return self.failed(refusal, how, cx);
                }

                count(&self.counters.failure_mode_allowed, cx);
                if self.failure.header {
                    cx.head.append(FAILURE_MODE_ALLOWED, b"true");
                }
                Step::Continue
            }
        }
    }

    fn note_metadata(
        &self,
        metadata: Option<Value>,
        verdict: &Verdict,
        asked: Option<Asked>,
        cx: &mut RequestContext<'_>,
    ) {
        let Some(Value::Struct(mut fields)) = metadata else {
            return;
        };
        if fields.is_empty() {
            return;
        }
        if !self.ingests_metadata {
            count(&self.counters.ignored_dynamic_metadata, cx);
            return;
        }

        if let (Verdict::Allowed(_), Some(asked)) = (verdict, asked) {
            let took = cx.now.saturating_sub(asked.at);
            // Whole milliseconds, as Envoy.
            let took = Value::Number(took.as_millis() as f64);
            fields.insert("ext_authz_duration".into(), took);
        }
        for (name, value) in fields {
            cx.state.metadata.set(METADATA_NAMESPACE, &name, value);
        }
    }

    fn allow(&self, allowed: Allowed, cx: &mut RequestContext<'_>) -> Step {
        if self.validate_mutations && !allowed.is_valid() {
            return self.invalid(cx);
        }

        count(&self.counters.ok, cx);
        if self.clear_route_cache && allowed.changes_request() {
            *cx.reroute = true;
        }

        allowed.apply(cx.head);
        if !allowed.response.is_empty() {
            cx.keep(ForResponse(allowed.response));
        }

        Step::Continue
    }

    fn deny(&self, refusal: Refusal, cx: &mut RequestContext<'_>) -> Step {
        if self.validate_mutations && !refusal.is_valid() {
            return self.invalid(cx);
        }

        count(&self.counters.denied, cx);
        let reply = self.reply(refusal, 403, "ext_authz_denied", "denied".into());
        cx.flag(ResponseFlag::UnauthorizedExternalService);

        reply.into()
    }

    /// Refuses a request that the service has not decided on.
    fn failed(
        &self,
        refusal: Option<Box<Refusal>>,
        how: Cow<'static, str>,
        cx: &mut RequestContext<'_>,
    ) -> Step {
        let refusal = refusal.map(|refusal| *refusal).unwrap_or_default();
        let reply = self.reply(refusal, self.failure.status, "ext_authz_error", how);
        cx.flag(ResponseFlag::UnauthorizedExternalService);

        reply.into()
    }

    fn invalid(&self, cx: &mut RequestContext<'_>) -> Step {
        count(&self.counters.invalid, cx);
        let how = "the answer holds an invalid header".into();
        let reply = self.reply(Refusal::default(), 500, "ext_authz_invalid", how);
        cx.flag(ResponseFlag::UnauthorizedExternalService);

        reply.into()
    }

    fn reply(
        &self,
        refusal: Refusal,
        status: u16,
        details: &'static str,
        how: Cow<'static, str>,
    ) -> LocalReply {
        let mut body = refusal.body;
        if let Some(max) = self.max_denied_body {
            body.truncate(max);
        }

        let cause = Cause::ExternalAuthorization(self.service.cluster().clone(), how);
        let status = refusal.status.unwrap_or(status);
        let mut reply = LocalReply::new(status, body, details, cause)
            .flagged(ResponseFlag::UnauthorizedExternalService);
        mutation::apply_to_reply(refusal.headers, &mut reply);

        reply
    }

    pub(crate) fn on_response(&self, cx: &mut ResponseContext<'_>) {
        if let Some(ForResponse(mutations)) = cx.take() {
            mutation::apply(&mutations, cx.head);
        }
    }

    /// The most specific route that says something of the body decides.
    fn body_settings(&self, routes: &[&CheckSettings]) -> Option<BodySettings> {
        let rules = routes.iter().map(|settings| settings.body);
        match rules.into_iter().find(|rule| *rule != BodyRule::Inherit) {
            Some(BodyRule::Off) => None,
            Some(BodyRule::Own(own)) => Some(own),
            Some(BodyRule::Inherit) | None => self.body,
        }
    }
}

/// Context extensions of all route levels; a more specific level replaces equal keys, as in Envoy.
fn context_extensions(routes: &[&CheckSettings]) -> Vec<(String, String)> {
    let levels = routes.iter().rev();
    levels
        .flat_map(|settings| settings.context_extensions.iter().cloned())
        .collect()
}

fn count(counter: &Option<Counter>, cx: &RequestContext<'_>) {
    if let Some(counter) = counter {
        cx.count(counter);
    }
}

impl Enabled {
    fn includes(&self, cx: &mut RequestContext<'_>) -> bool {
        let metadata = self.metadata.as_ref();
        metadata.is_none_or(|matcher| matcher.is_match(&cx.state.metadata))
            && self.fraction.hits(cx.entropy.draw())
    }
}

impl Service {
    fn cluster(&self) -> &Arc<str> {
        match self {
            Self::Grpc(service) => &service.cluster,
            Self::Http(service) => &service.cluster,
        }
    }
}

impl BodySettings {
    fn hold(self) -> Hold {
        Hold {
            limit: self.max_bytes,
            beyond: match self.allow_partial {
                true => Beyond::Deliver,
                false => Beyond::Refuse,
            },
        }
    }
}
