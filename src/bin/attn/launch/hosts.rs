//! Which ranks run on which host.

use crate::failure::Failure;

/// A host and its ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// As the command line has it, without the number behind it.
    pub(super) name: String,
    /// The ranks' numbers in the world, rising.
    pub(super) ranks: Vec<usize>,
}

impl Host {
    /// This machine, as a host is called that needs no ssh.
    pub(super) const HERE: &'static str = "localhost";

    /// Whether it is this machine.
    pub(super) fn is_here(&self) -> bool {
        self.name == Self::HERE
    }

    /// How others reach it: without a user's name before it, and brackets round it.
    pub(super) fn address(&self) -> &str {
        let name = self.name.rsplit_once('@').map_or(self.name.as_str(), |(_, name)| name);
        name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name)
    }
}

/// Gives out ranks to the hosts of `a,b:2`, in order. Without a number of ranks, all places are filled; without hosts,
/// this machine has as many as it takes.
///
/// # Errors
/// If the list makes no sense, or the ranks have no place on it.
pub(super) fn distribute(ranks: Option<usize>, list: Option<&str>) -> Result<Vec<Host>, Failure> {
    let Some(list) = list else {
        let ranks = ranks.ok_or_else(|| {
            Failure::Usage(String::from("how many ranks? say so with `-n`, or name hosts with `--hosts`"))
        })?;
        return Ok(vec![Host { name: Host::HERE.to_owned(), ranks: (0..ranks).collect() }]);
    };
    let entries = list.split(',').map(entry).collect::<Result<Vec<_>, Failure>>()?;
    let places: usize = entries.iter().map(|(_, places)| places).sum();
    let ranks = ranks.unwrap_or(places);
    if ranks > places {
        return Err(Failure::Usage(format!(
            "{ranks} ranks on `--hosts {list}`, which has places for {places}: give hosts more, as in `{}:{}`",
            entries.first().map_or("host", |(name, _)| name),
            ranks.div_ceil(entries.len()),
        )));
    }
    let mut hosts: Vec<Host> = Vec::new();
    let mut next = 0;
    for (name, places) in entries {
        let mine = next..ranks.min(next + places);
        next = mine.end;
        match hosts.iter_mut().find(|host| host.name == name) {
            Some(host) => host.ranks.extend(mine),
            None => hosts.push(Host { name: name.to_owned(), ranks: mine.collect() }),
        }
    }
    hosts.retain(|host| !host.ranks.is_empty());
    Ok(hosts)
}

/// A host and its number of places: one, or what stands behind the colon.
fn entry(text: &str) -> Result<(&str, usize), Failure> {
    let refuse = |why: &str| {
        Err(Failure::Usage(format!(
            "`--hosts`: `{text}` {why}: expected `host` or `host:places`, with commas between them"
        )))
    };
    // Colons inside of brackets, or several without them, are an address's.
    let (name, places) = match text.rsplit_once(':') {
        Some((name, places)) if !places.ends_with(']') && (!name.contains(':') || name.ends_with(']')) => {
            (name, Some(places))
        }
        _ => (text, None),
    };
    let places = match places.map(str::parse) {
        None => 1,
        Some(Ok(places @ 1..=1024)) => places,
        Some(_) => return refuse("has no number of places from 1 to 1024"),
    };
    // What begins with a hyphen would be an option of ssh.
    let odd = |c: char| c.is_whitespace() || c.is_control();
    if name.is_empty() || name.starts_with('-') || name.contains(odd) {
        return refuse("names no host");
    }
    Ok((name, places))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(ranks: Option<usize>, list: &str, expected: &[(&str, &[usize])]) {
        let hosts = distribute(ranks, Some(list)).unwrap();
        let found: Vec<(&str, &[usize])> =
            hosts.iter().map(|host| (host.name.as_str(), host.ranks.as_slice())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn ranks_go_to_hosts_in_order() {
        check(None, "a,b:2", &[("a", &[0]), ("b", &[1, 2])]);
        check(Some(3), "a:2,b:2,c", &[("a", &[0, 1]), ("b", &[2])]);
        check(None, "a,b,a:2", &[("a", &[0, 2, 3]), ("b", &[1])]);
        check(
            None,
            "me@a:1,[fe80::1]:2,fe80::2",
            &[("me@a", &[0]), ("[fe80::1]", &[1, 2]), ("fe80::2", &[3])],
        );
        let hosts = distribute(Some(2), None).unwrap();
        assert!(hosts.len() == 1 && hosts[0].is_here() && hosts[0].ranks == [0, 1]);
    }

    #[test]
    fn a_host_is_reached_by_its_name_alone() {
        let host = |name: &str| Host { name: name.to_owned(), ranks: Vec::new() };
        for (name, address) in [("a", "a"), ("me@a.b", "a.b"), ("me@[::1]", "::1"), ("fe80::2", "fe80::2")] {
            assert_eq!(host(name).address(), address);
        }
    }

    #[test]
    fn what_is_no_list_of_hosts_is_refused() {
        for (ranks, list, says) in [
            (None, "", "`` names no host"),
            (None, "a,,b", "`` names no host"),
            (None, "a b", "`a b` names no host"),
            (None, "-oProxyCommand=x", "names no host"),
            (None, "a:0", "`a:0` has no number of places"),
            (None, "a:x", "has no number of places"),
            (None, "a:1025", "has no number of places"),
            (None, ":2", "names no host"),
            (
                Some(5),
                "a,b:2",
                "5 ranks on `--hosts a,b:2`, which has places for 3: give hosts more, as in `a:3`",
            ),
        ] {
            let error = distribute(ranks, Some(list)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert!(distribute(None, None).unwrap_err().to_string().contains("`-n`"));
    }
}
