//! Filter state: text by key, set by filters, read by later ones, by logs and by the upstream
//! connection.

use meltemi_proto::envoy::config::core::v3::substitution_format_string::Format;
use meltemi_proto::envoy::extensions::filters::common::set_filter_state::v3 as common;
use meltemi_proto::envoy::extensions::filters::http::set_filter_state::v3::Config;

use crate::finding::{Rejection, Scope};
use crate::format::{Place, Template};
use crate::http::RequestContext;

/// Text by key; the last of equal keys counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilterState(Vec<(Box<str>, Box<str>)>);

impl FilterState {
    /// A value.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(own, _)| &**own == key)
            .map(|(_, value)| &**value)
    }

    /// Sets a value.
    pub fn set(&mut self, key: &str, value: &str) {
        match self.0.iter_mut().find(|(own, _)| &**own == key) {
            Some((_, own)) => *own = value.into(),
            None => self.0.push((key.into(), value.into())),
        }
    }

    /// The ALPN list that a filter asks the upstream connection to offer.
    pub fn upstream_alpn(&self) -> Option<impl Iterator<Item = &str>> {
        self.get(APPLICATION_PROTOCOLS).map(|list| list.split(','))
    }

    /// The SNI that a filter asks the upstream connection to send.
    pub fn upstream_server_name(&self) -> Option<&str> {
        self.get(UPSTREAM_SERVER_NAME)
    }
}

const APPLICATION_PROTOCOLS: &str = "envoy.network.application_protocols";
const UPSTREAM_SERVER_NAME: &str = "envoy.network.upstream_server_name";

/// `envoy.filters.http.set_filter_state`.
#[derive(Debug, Clone)]
pub struct SetFilterState {
    values: Vec<(Box<str>, Template, bool)>,
}

impl SetFilterState {
    /// Compiles Envoy's message.
    #[allow(deprecated)] // text_format is what is sent
    pub fn compile(message: &Config, scope: &mut Scope) -> Result<Self, Rejection> {
        let values = scope.each(
            "on_request_headers",
            &message.on_request_headers,
            |scope, value| {
                let common::filter_state_value::Key::ObjectKey(key) =
                    scope.required("key", value.key.as_ref())?;
                let common::filter_state_value::Value::FormatString(format) =
                    scope.required("value", value.value.as_ref())?;
                let template = match &format.format {
                    Some(Format::TextFormat(text)) => {
                        Template::parse(text).map_err(|reason| scope.reject(reason))?
                    }
                    _ => return scope.refuse("only a text format is known"),
                };

                for gap in template.gaps(Place::FilterRequest) {
                    scope.warn("value", gap);
                }
                Ok((key.as_str().into(), template, value.skip_if_empty))
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
