//! Local rate limits: `envoy.filters.http.local_ratelimit`.
//!
//! The bucket lives beside its configuration and is shared by all workers, without a lock. Its
//! tokens survive a new version of the configuration if the settings are the same (see
//! [`Buckets`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use meltemi_proto::envoy::extensions::filters::http::local_ratelimit::v3 as proto;
use meltemi_proto::envoy::r#type::v3::TokenBucket as ProtoBucket;

use crate::finding::{Rejection, Scope};
use crate::flag::ResponseFlag;
use crate::format::Place;
use crate::header_ops::HeaderOps;
use crate::http::context::{RequestContext, ResponseContext};
use crate::http::phase::Step;
use crate::matcher::Fraction;
use crate::reply::{Cause, LocalReply};

/// A limit on the requests of one listener or route.
#[derive(Debug)]
pub struct LocalRateLimit {
    stat_prefix: Arc<str>,
    status: u16,
    /// `None`: nothing is limited.
    bucket: Option<Arc<TokenBucket>>,
    enabled: Fraction,
    enforced: Fraction,
    response_headers: HeaderOps,
    request_headers_not_enforced: HeaderOps,
    as_resource_exhausted: bool,
}

/// Kept for a request that was refused: its answer gets the headers that are configured.
struct Limited;

/// Settings of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BucketSpec {
    /// The capacity, in tokens.
    pub max: u32,
    /// Tokens that each fill adds.
    pub per_fill: u32,
    /// The time between two fills.
    pub interval: Duration,
}

/// A token bucket without a lock.
#[derive(Debug)]
pub struct TokenBucket {
    spec: BucketSpec,
    /// Upper half: fills so far, since time zero; lower half: tokens.
    state: AtomicU64,
}

impl TokenBucket {
    /// Creates a full bucket.
    pub fn new(spec: BucketSpec) -> Self {
        Self {
            spec,
            state: AtomicU64::new(u64::from(spec.max)),
        }
    }

    /// Takes a token; false if the bucket is empty. `now` is the time since a fixed point, the same
    /// for all calls.
    pub fn take(&self, now: Duration) -> bool {
        let interval = self.spec.interval.as_nanos().max(1);

        // Fills are counted modulo 2^32; the first call after a very long pause may see a bucket as
        // less full.
        let fills = (now.as_nanos() / interval) as u32;
        let taken = self
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
                let (seen, tokens) = ((state >> 32) as u32, state as u32);
                let (seen, tokens) = match fills.wrapping_sub(seen) {
                    // Another worker has read a later time and has added these fills already.
                    new if new == 0 || new > u32::MAX / 2 => (seen, tokens),
                    new => {
                        let gained =
                            u64::from(new) * u64::from(self.spec.per_fill) + u64::from(tokens);
                        (fills, gained.min(u64::from(self.spec.max)) as u32)
                    }
                };

                tokens
                    .checked_sub(1)
                    .map(|left| u64::from(seen) << 32 | u64::from(left))
            });

        taken.is_ok()
    }
}

/// The buckets in use, by owner and settings, so that a push that changes other settings does not
/// refill them.
#[derive(Debug, Clone, Default)]
pub struct Buckets(Arc<Mutex<BucketMap>>);

type BucketMap = HashMap<(String, BucketSpec), Weak<TokenBucket>>;

impl Buckets {
    /// The bucket of an owner; a new one if none with these settings is in use.
    pub fn get(&self, owner: &str, spec: BucketSpec) -> Arc<TokenBucket> {
        // Only compilers lock this. A poisoned lock holds a map that is still whole.
        let mut buckets = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);

        let key = (owner.to_owned(), spec);
        if let Some(bucket) = buckets.get(&key).and_then(Weak::upgrade) {
            return bucket;
        }
        buckets.retain(|_, bucket| bucket.strong_count() > 0);
        let bucket = Arc::new(TokenBucket::new(spec));
        buckets.insert(key, Arc::downgrade(&bucket));

        bucket
    }
}

impl LocalRateLimit {
    /// Compiles Envoy's message. `owner` names the resource and filter that it is part of.
    pub fn compile(
        message: &proto::LocalRateLimit,
        owner: &str,
        buckets: &Buckets,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let proto::LocalRateLimit {
            stat_prefix,
            status,
            token_bucket,
            filter_enabled,
            filter_enforced,
            request_headers_to_add_when_not_enforced,
            response_headers_to_add,
            descriptors,
            stage,
            local_rate_limit_per_downstream_connection,
            local_cluster_rate_limit,
            enable_x_ratelimit_headers,
            vh_rate_limits,
            always_consume_default_token_bucket,
            rate_limited_as_resource_exhausted,
            rate_limits,
            max_dynamic_descriptors,
            enable_retry_after_header,
        } = message;

        // Descriptors give some requests a bucket of their own. Here all requests share the default
        // bucket, which may be laxer for some of them: the warning says so.
        for (field, is_set) in [
            ("descriptors", !descriptors.is_empty()),
            ("stage", *stage != 0),
            (
                "local_rate_limit_per_downstream_connection",
                *local_rate_limit_per_downstream_connection,
            ),
            (
                "local_cluster_rate_limit",
                local_cluster_rate_limit.is_some(),
            ),
            (
                "enable_x_ratelimit_headers",
                *enable_x_ratelimit_headers != 0,
            ),
            ("vh_rate_limits", *vh_rate_limits != 0),
            (
                "always_consume_default_token_bucket",
                always_consume_default_token_bucket.is_some_and(|on| !on.value),
            ),
            ("rate_limits", !rate_limits.is_empty()),
            ("max_dynamic_descriptors", max_dynamic_descriptors.is_some()),
            ("enable_retry_after_header", *enable_retry_after_header),
        ] {
            scope.unsupported(field, is_set);
        }

        let bucket = match token_bucket {
            None => None,
            Some(bucket) => Some(buckets.get(
                &format!("{owner}/{stat_prefix}"),
                compile_bucket(bucket, scope)?,
            )),
        };

        // Envoy answers 429 where the status is no error.
        let status = status
            .as_ref()
            .and_then(|status| u16::try_from(status.code).ok());

        Ok(Self {
            stat_prefix: stat_prefix.as_str().into(),
            status: status
                .filter(|status| (400..600).contains(status))
                .unwrap_or(429),
            bucket,
            // Envoy's default for both is no request.
            enabled: Fraction::from_runtime(filter_enabled.as_ref(), Fraction::NONE),
            enforced: Fraction::from_runtime(filter_enforced.as_ref(), Fraction::NONE),
            response_headers: HeaderOps::compile(
                Place::FilterResponse,
                "response_headers_to_add",
                response_headers_to_add,
                &[],
                scope,
            )?,
            request_headers_not_enforced: HeaderOps::compile(
                Place::FilterRequest,
                "request_headers_to_add_when_not_enforced",
                request_headers_to_add_when_not_enforced,
                &[],
                scope,
            )?,
            as_resource_exhausted: *rate_limited_as_resource_exhausted,
        })
    }

    /// Takes a token, or refuses the request.
    pub(crate) fn on_request(&self, cx: &mut RequestContext<'_>) -> Step {
        let Some(bucket) = &self.bucket else {
            return Step::Continue;
        };
        if !self.enabled.hits(cx.entropy.draw()) || bucket.take(cx.now) {
            return Step::Continue;
        }
        if !self.enforced.hits(cx.entropy.draw()) {
            cx.change(&self.request_headers_not_enforced);
            return Step::Continue;
        }

        cx.flag(ResponseFlag::RateLimited);
        cx.keep(Limited);
        let cause = Cause::RateLimit(self.stat_prefix.clone());
        let mut reply = LocalReply::new(
            self.status,
            "local_rate_limited",
            "local_rate_limited",
            cause,
        )
        .flagged(ResponseFlag::RateLimited);

        if self.as_resource_exhausted {
            reply.grpc_status = Some(8);
        }
        if self.status == 429 {
            reply = reply.header("x-envoy-ratelimited", "true");
        }

        reply.into()
    }

    /// Adds headers to the answer of a refused request.
    pub(crate) fn on_response(&self, cx: &mut ResponseContext<'_>) {
        if cx.take::<Limited>().is_some() {
            cx.change(&self.response_headers);
        }
    }
}

fn compile_bucket(message: &ProtoBucket, scope: &mut Scope) -> Result<BucketSpec, Rejection> {
    let interval = scope
        .duration("token_bucket.fill_interval", message.fill_interval.as_ref())?
        .unwrap_or_default();
    if message.max_tokens == 0 || interval < Duration::from_millis(50) {
        return scope
            .refuse("token_bucket needs max_tokens above 0 and a fill_interval of 50 ms or more");
    }

    let per_fill = message
        .tokens_per_fill
        .as_ref()
        .map_or(1, |tokens| tokens.value);

    if per_fill == 0 {
        return scope.refuse("token_bucket.tokens_per_fill is 0");
    }

    Ok(BucketSpec {
        max: message.max_tokens,
        per_fill,
        interval,
    })
}
