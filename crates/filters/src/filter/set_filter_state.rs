//! `envoy.filters.http.set_filter_state`: text for later filters, logs and the upstream connection.

use meltemi_proto::envoy::config::core::v3::substitution_format_string::Format;
use meltemi_proto::envoy::extensions::filters::common::set_filter_state::v3 as common;
use meltemi_proto::envoy::extensions::filters::http::set_filter_state::v3::Config;

use crate::finding::{Rejection, Scope};
use crate::format::{Place, Template};
use crate::http::context::RequestContext;

/// `envoy.filters.http.set_filter_state`.
#[derive(Debug, Clone)]
pub struct SetFilterState {
    values: Vec<(Box<str>, Template, bool)>,
}

impl SetFilterState {
    /// Compiles Envoy's message.
    #[expect(deprecated, reason = "control planes send text_format")]
    pub fn compile(message: &Config, scope: &mut Scope) -> Result<Self, Rejection> {
        let Config {
            on_request_headers,
            clear_route_cache,
        } = message;
        scope.unsupported("clear_route_cache", *clear_route_cache);

        let values = scope.each(
            "on_request_headers",
            on_request_headers,
            |scope, message| {
                let common::FilterStateValue {
                    factory_key,
                    // Only this filter sets values, and it may set one again.
                    read_only: _,
                    shared_with_upstream,
                    skip_if_empty,
                    key,
                    value,
                } = message;
                scope.unsupported("factory_key", !factory_key.is_empty());
                scope.unsupported("shared_with_upstream", *shared_with_upstream != 0);

                let common::filter_state_value::Key::ObjectKey(key) =
                    scope.required("key", key.as_ref())?;
                let common::filter_state_value::Value::FormatString(format) =
                    scope.required("value", value.as_ref())?;
                let template = match &format.format {
                    Some(Format::TextFormat(text)) => {
                        Template::parse(text).map_err(|reason| scope.reject(reason))?
                    }
                    _ => return scope.refuse("only a text format is known"),
                };

                for gap in template.gaps(Place::FilterRequest) {
                    scope.warn("value", gap);
                }
                Ok((key.as_str().into(), template, *skip_if_empty))
            },
        )?;

        Ok(Self { values })
    }

    /// Sets the values.
    pub fn on_request(&self, cx: &mut RequestContext<'_>) {
        for (key, template, skip_if_empty) in &self.values {
            let mut text = Vec::new();
            template.render(&cx.facts(), "", &mut text);
            if !(text.is_empty() && *skip_if_empty) {
                cx.state
                    .filter_state
                    .set(key, &String::from_utf8_lossy(&text));
            }
        }
    }
}
