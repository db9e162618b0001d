//! Which requests go through a proxy, by the variables that other programs read.

/// The proxies of the environment.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    except: Vec<String>,
}

/// A proxy, and the variable that names it: its address may hold a password and is never shown.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) variable: &'static str,
    pub(crate) address: String,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "${}", self.variable)
    }
}

impl Proxies {
    /// One proxy for all that is asked.
    pub fn for_all(address: &str) -> Proxies {
        Proxies::read(&|name| (name == "ALL_PROXY").then(|| address.to_owned()))
    }

    /// The proxies that these variables name. A name in small letters goes first, as elsewhere.
    pub(crate) fn read(variable: &dyn Fn(&str) -> Option<String>) -> Proxies {
        let first = |names: [&'static str; 4]| {
            names.into_iter().find_map(|variable_name| {
                let address = variable(variable_name)?;
                Some(Proxy {
                    variable: variable_name,
                    address: address.trim().to_owned(),
                })
            })
        };
        let except = variable("no_proxy")
            .or_else(|| variable("NO_PROXY"))
            .unwrap_or_default();
        Proxies {
            http: first(["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]),
            https: first(["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
            except: except
                .split(',')
                .map(|entry| entry.trim().to_lowercase())
                .filter(|entry| !entry.is_empty())
                .collect(),
        }
    }

    /// The proxy for this host, if there is one.
    pub(crate) fn find(&self, https: bool, host: &str, port: u16) -> Option<&Proxy> {
        let host = host.trim_matches(['[', ']']).to_lowercase();
        if self.except.iter().any(|entry| excepts(entry, &host, port)) {
            return None;
        }
        if https {
            self.https.as_ref()
        } else {
            self.http.as_ref()
        }
    }
}

/// Whether an entry of `NO_PROXY` stands for this host: all, the host itself or a domain it is in, with or without a port.
fn excepts(entry: &str, host: &str, port: u16) -> bool {
    let (name, fits) = match entry.rsplit_once(':') {
        Some((name, digits)) if !name.contains(':') || name.ends_with(']') => {
            (name, digits == port.to_string())
        }
        _ => (entry, true),
    };
    let name = name
        .trim_start_matches('*')
        .trim_start_matches('.')
        .trim_matches(['[', ']']);
    let within = host
        .strip_suffix(name)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    fits && (entry == "*" || (!name.is_empty() && within))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::read(&|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn each_scheme_has_its_proxy() {
        let some = proxies(&[
            ("HTTPS_PROXY", "http://s:1"),
            ("http_proxy", "http://p:2"),
            ("HTTP_PROXY", "http://q:3"),
        ]);
        let address = |https| {
            some.find(https, "hub.example", 443)
                .map(|proxy| proxy.address.as_str())
        };
        assert_eq!(
            (address(true), address(false)),
            (Some("http://s:1"), Some("http://p:2"))
        );
        let all = proxies(&[("ALL_PROXY", "socks5://a:4")]);
        assert!(all.find(true, "hub", 443).is_some() && all.find(false, "hub", 80).is_some());
        assert!(proxies(&[]).find(true, "hub", 443).is_none());
    }

    #[test]
    fn some_hosts_are_asked_directly() {
        let table = [
            ("*", "a.example", true),
            ("example", "a.example", true),
            (".example", "a.example", true),
            ("*.example", "a.example", true),
            ("b, A.example", "a.EXAMPLE", true),
            ("a.example:443", "a.example", true),
            ("a.example:80", "a.example", false),
            ("ample", "a.example", false),
            ("", "a.example", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("::1", "[::1]", true),
        ];
        for (entries, host, direct) in table {
            let some = proxies(&[("HTTPS_PROXY", "http://s:1"), ("NO_PROXY", entries)]);
            assert_eq!(
                some.find(true, host, 443).is_none(),
                direct,
                "{entries} {host}"
            );
        }
    }
}
