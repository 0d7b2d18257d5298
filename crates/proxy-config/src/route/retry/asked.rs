//! What the headers of one request ask of its retries.

use std::borrow::Cow;
use std::time::Duration;

use meltemi_filters::RequestHead;
use meltemi_filters::head::Known;
use meltemi_filters::matcher::HeaderMatch;

use super::{RetryOn, RetryPolicy};

/// Statuses and header names that one request may add to a policy.
const MOST: usize = 64;

const RETRIABLE_HEADER_NAMES: &str = "x-envoy-retriable-header-names";

/// The fields that are looked at here; the router removes them.
const ASKING: [Known; 4] = [
    Known::XEnvoyRetryOn,
    Known::XEnvoyRetryGrpcOn,
    Known::XEnvoyMaxRetries,
    Known::XEnvoyRetriableStatusCodes,
];

impl RetryPolicy {
    /// The policy of one request: `own`, as the request's headers change it. `None`: nothing is
    /// retried. The connection manager has removed the headers of strangers. Source: Envoy
    /// `RetryStateImpl`.
    pub fn of_request<'p>(own: Option<&'p Self>, head: &RequestHead) -> Option<Cow<'p, Self>> {
        let fields = head.fields();
        let by_headers = own.is_some_and(|own| own.on.contains(RetryOn::RETRIABLE_HEADERS))
            && fields.contains(RETRIABLE_HEADER_NAMES);
        let is_asked = by_headers || ASKING.iter().any(|known| fields.has(*known));

        let policy = match (own, is_asked) {
            (own, false) => Cow::Borrowed(own?),
            (own, true) => {
                let mut policy = own.map_or_else(Self::nothing, Self::clone);
                policy.add(head);
                Cow::Owned(policy)
            }
        };

        (!policy.on.is_empty() && policy.admits(head)).then_some(policy)
    }

    /// The policy of a route without one, until a request asks for more.
    fn nothing() -> Self {
        Self {
            on: RetryOn::default(),
            num_retries: 1,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            status_codes: Box::default(),
            response_headers: Box::default(),
            request_headers: Box::default(),
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
            rate_limited_backoff: None,
            avoid_previous_hosts: false,
            omitted_hosts: Box::default(),
            previous_priorities: None,
            host_selection_attempts: 1,
        }
    }

    fn add(&mut self, head: &RequestHead) {
        let text = |known| head.fields().known_str(known).unwrap_or_default();
        let words = |known| RetryOn::parse(text(known), |_| {});
        let http = words(Known::XEnvoyRetryOn).without(RetryOn::GRPC);
        let grpc = words(Known::XEnvoyRetryGrpcOn).within(RetryOn::GRPC);
        self.on = self.on.union(http).union(grpc);

        if let Ok(most) = text(Known::XEnvoyMaxRetries).trim().parse::<u64>() {
            self.num_retries = u32::try_from(most).unwrap_or(u32::MAX);
        }

        let codes = list(text(Known::XEnvoyRetriableStatusCodes));
        let codes = codes.filter_map(|code| code.parse().ok());
        self.status_codes = self.status_codes.iter().copied().chain(codes).collect();

        let names = head.get_str(RETRIABLE_HEADER_NAMES).unwrap_or_default();
        let headers = self.response_headers.iter().cloned();
        self.response_headers = headers
            .chain(list(names).map(HeaderMatch::present))
            .collect();
    }
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(',').map(str::trim);
    words.filter(|word| !word.is_empty()).take(MOST)
}

#[cfg(test)]
mod tests {
    use meltemi_filters::{ResponseHead, Scope};
    use meltemi_proto::envoy::config::route::v3 as proto;

    use super::*;

    fn of(retry_on: &str) -> RetryPolicy {
        let message = proto::RetryPolicy {
            retry_on: retry_on.into(),
            ..Default::default()
        };
        RetryPolicy::compile(&message, &mut Scope::new()).expect("compiles")
    }

    fn head(fields: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::of("GET", "a", "/");
        for (name, value) in fields {
            head.append(name, value.as_bytes());
        }
        head
    }

    #[test]
    fn a_request_adds_conditions_and_replaces_the_number() {
        let none = RetryPolicy::of_request(None, &head(&[]));
        assert!(none.is_none());
        let none = RetryPolicy::of_request(None, &head(&[("x-envoy-max-retries", "3")]));
        assert!(none.is_none(), "a number is no condition");

        let asked = head(&[("x-envoy-retry-on", "nonsense, 5xx,unavailable")]);
        let policy = RetryPolicy::of_request(None, &asked).expect("asked for");
        assert_eq!((policy.on, policy.num_retries), (RetryOn::FIVE_XX, 1));

        let asked = head(&[
            ("x-envoy-retry-grpc-on", "unavailable,5xx"),
            ("x-envoy-max-retries", "7"),
        ]);
        let own = of("reset");
        let policy = RetryPolicy::of_request(Some(&own), &asked).expect("asked for");
        let both = RetryOn::RESET.union(RetryOn::GRPC_UNAVAILABLE);
        assert_eq!((policy.on, policy.num_retries), (both, 7));

        for number in ["-1", "x", ""] {
            let asked = head(&[("x-envoy-max-retries", number)]);
            let policy = RetryPolicy::of_request(Some(&own), &asked).expect("its own");
            assert_eq!(policy.num_retries, 1, "{number:?}");
        }
    }

    #[test]
    fn a_request_adds_statuses_and_headers_of_responses() {
        let own = of("retriable-status-codes,retriable-headers");
        let asked = head(&[
            ("x-envoy-retriable-status-codes", "abc, 409,70000"),
            ("x-envoy-retriable-header-names", "x-other, X-Again"),
        ]);
        let policy = RetryPolicy::of_request(Some(&own), &asked).expect("its own");
        assert!(policy.retries_response(&ResponseHead::of(409)));

        let mut again = ResponseHead::of(200);
        assert!(!policy.retries_response(&again));
        again.append("x-again", b"no");
        assert!(policy.retries_response(&again));
    }
}
