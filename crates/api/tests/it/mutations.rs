//! Damaged text is told about, never fallen over.

use meltemi_api::{parse, to_yaml, validate, value_of};

/// Enough of everything to damage.
const TEXT: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, labels: {a: 'b'}}
spec:
  hosts: &hosts [\"reviews\", 'x.*']
  http:
  - match: [{uri: {regex: '^/(a|b)+$'}, headers: {x: {exact: \"\\x41\"}}}]
    timeout: 1.5s
    route:
    - destination: {host: reviews, subset: v1, port: {number: 0x50}}
      weight: 1_0
  exportTo: *hosts
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |-
    accessLogFile: /dev/stdout
    extensionProviders:
    - name: x
      envoyFileAccessLog: {path: /x}
  other: >
    folded
    text
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: a}
spec:
  selector: {matchLabels: {app: b}}
  rules:
  - from: [{source: {ipBlocks: [10.0.0.0/8], principals: ['*']}}]
    to: [{operation: {paths: ['/{*}/a'], ports: ['80']}}]
    when: [{key: 'request.headers[x]', values: [\"é\"]}]
";

#[test]
fn any_damage_is_survived() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % limit as u64).unwrap_or(0)
    };

    let alphabet: Vec<char> = "-:[]{}&*!|>'\"%@`#,?~ \n\t\\<a0.é\u{0}\u{feff}\u{2028}"
        .chars()
        .collect();
    let characters: Vec<char> = TEXT.chars().collect();

    for _ in 0..3000 {
        let mut damaged = characters.clone();
        for _ in 0..=random(4) {
            let at = random(damaged.len());
            match random(4) {
                0 => damaged[at] = alphabet[random(alphabet.len())],
                1 => damaged.insert(at, alphabet[random(alphabet.len())]),
                2 => {
                    damaged.remove(at);
                }
                _ => damaged.truncate(at.max(1)),
            }
        }

        let text: String = damaged.into_iter().collect();
        let parsed = parse("x.yaml", &text);
        for object in &parsed.objects {
            validate(object);
            // What can be read can be written, and says the same.
            let written = to_yaml(&object.raw);
            assert_eq!(
                value_of(&written).as_ref(),
                Some(&object.raw),
                "{text}\n=>\n{written}"
            );
        }

        for finding in &parsed.diagnostics {
            assert!(finding.position.line > 0, "{finding}\n{text}");
        }
    }
}
