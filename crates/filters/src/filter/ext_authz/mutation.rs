//! Changes to headers and query parameters that an answer asks for.

use bytes::Bytes;
use meltemi_proto::envoy::config::core::v3::HeaderValueOption;
use meltemi_proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;

use crate::head::RequestHead;
use crate::header_ops::{AppendAction, HeadMut, is_framing, is_name};
use crate::reply::LocalReply;

/// One header, and what happens where it is there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mutation {
    pub(super) name: String,
    pub(super) value: Bytes,
    pub(super) action: Action,
}

/// What happens where the header is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// As routes say it.
    Of(AppendAction),
    /// The value is added to the header's line after a comma; without a line nothing happens. What
    /// `append: true` means to Envoy here.
    Join,
}

impl Mutation {
    /// The header replaces one that is there.
    pub(super) fn set(name: &str, value: &[u8]) -> Self {
        Self::new(name, value, AppendAction::Overwrite)
    }

    /// The header is added to one that is there.
    pub(super) fn add(name: &str, value: &[u8]) -> Self {
        Self::new(name, value, AppendAction::Append)
    }

    fn new(name: &str, value: &[u8], action: AppendAction) -> Self {
        Self {
            name: name.to_ascii_lowercase(),
            value: Bytes::copy_from_slice(value),
            action: Action::Of(action),
        }
    }

    /// Changes to a request or a refusal. As stock Envoy reads them: only the older field `append`
    /// counts, and an absent one replaces.
    pub(super) fn all(options: Vec<HeaderValueOption>) -> Vec<Self> {
        #[expect(deprecated, reason = "the only field that Envoy reads here")]
        let action = |option: &HeaderValueOption| match &option.append {
            Some(append) if append.value => Action::Join,
            _ => Action::Of(AppendAction::Overwrite),
        };
        Self::read(options, action)
    }

    /// Changes to the response of a request that passes, where `append_action` counts as well.
    pub(super) fn all_of_response(options: Vec<HeaderValueOption>) -> Vec<Self> {
        let action = |option: &HeaderValueOption| {
            #[expect(deprecated, reason = "services still send append")]
            let append = option.append.map(|append| append.value);
            let action = HeaderAppendAction::try_from(option.append_action);
            Action::Of(match (append, action) {
                (Some(true), _) | (None, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => {
                    AppendAction::Append
                }
                (None, Ok(HeaderAppendAction::AddIfAbsent)) => AppendAction::AddIfAbsent,
                (None, Ok(HeaderAppendAction::OverwriteIfExists)) => {
                    AppendAction::OverwriteIfExists
                }
                (Some(false), _)
                | (None, Ok(HeaderAppendAction::OverwriteIfExistsOrAdd) | Err(_)) => {
                    AppendAction::Overwrite
                }
            })
        };
        Self::read(options, action)
    }

    /// What names no header is left out.
    fn read(
        options: Vec<HeaderValueOption>,
        action: impl Fn(&HeaderValueOption) -> Action,
    ) -> Vec<Self> {
        let read = options.into_iter().filter_map(|option| {
            let action = action(&option);
            let header = option.header?;
            let value = match header.raw_value.is_empty() {
                true => header.value.into(),
                false => header.raw_value.into(),
            };

            Some(Self {
                name: header.key.to_ascii_lowercase(),
                value,
                action,
            })
        });

        read.collect()
    }

    /// Bytes of name and value.
    pub(super) fn len(&self) -> usize {
        self.name.len() + self.value.len()
    }

    /// Whether name and value may stand in a head.
    pub(super) fn is_valid(&self) -> bool {
        let value = |byte: &u8| *byte == b'\t' || (*byte >= 0x20 && *byte != 0x7f);
        is_name(&self.name) && self.value.iter().all(value)
    }

    /// The proxy alone frames messages, so the service cannot change these fields.
    fn may_apply(&self) -> bool {
        self.is_valid() && !is_framing(&self.name)
    }
}

/// Applies changes to a head in order. Invalid ones are left out.
pub(super) fn apply(mutations: &[Mutation], head: &mut impl HeadMut) {
    for Mutation {
        name,
        value,
        action,
    } in mutations.iter().filter(|mutation| mutation.may_apply())
    {
        match action {
            Action::Of(action) => action.write(head, name, value),
            Action::Join => {
                if let Some(mut own) = head.value(name) {
                    own.push(b',');
                    own.extend_from_slice(value);
                    head.set(name, &own);
                }
            }
        }
    }
}

/// Adds headers to a response that the proxy makes: they replace those that the proxy would set,
/// and several may have one name. Its length and framing stay.
pub(super) fn apply_to_reply(mutations: Vec<Mutation>, reply: &mut LocalReply) {
    let applied = mutations
        .into_iter()
        .filter(|mutation| mutation.may_apply() && !mutation.name.starts_with(':'));
    reply
        .headers
        .extend(applied.map(|mutation| (mutation.name.into(), mutation.value)));
}

/// Sets and removes parameters of a query; all keep their places, the new ones come last.
pub(super) fn change_query(head: &mut RequestHead, set: &[(String, String)], remove: &[String]) {
    if set.is_empty() && remove.is_empty() {
        return;
    }

    let path = head.path();
    let (path, fragment) = path.split_at(path.find('#').unwrap_or(path.len()));
    let (base, query) = path.split_once('?').unwrap_or((path, ""));
    let name_of = |part: &str| part.split('=').next().unwrap_or_default().to_owned();
    let new_value = |name: &str| set.iter().rfind(|(own, _)| own == name);

    let mut done: Vec<String> = Vec::new();
    let mut parts: Vec<String> = Vec::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let name = name_of(part);
        match new_value(&name) {
            _ if remove.contains(&name) => {}
            None => parts.push(part.to_owned()),
            // The first of its name takes the new value, the others go.
            Some((_, value)) if !done.contains(&name) => {
                parts.push(format!("{name}={value}"));
                done.push(name);
            }
            Some(_) => {}
        }
    }
    for (name, value) in set {
        if !remove.contains(name) && !done.contains(name) {
            parts.push(format!("{name}={value}"));
            done.push(name.clone());
        }
    }

    let query = parts.join("&");
    let separator = if query.is_empty() { "" } else { "?" };
    let new = format!("{base}{separator}{query}{fragment}");
    // A path with spaces or controls is refused by the head.
    head.set(":path", new.as_bytes());
}
