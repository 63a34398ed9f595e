//! The form of a worker, and its key, which is shown once.

use maud::{Markup, html};

use super::layout::{Body, Frame, Room, csrf_field, page};
use crate::config::Key;

use super::parts::{Field, Icon, Input, Tone, Wrong, copy, icon, note, wrongs};

/// What the form has, as it was typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Form {
    /// Where it is not new: the store's number, and the name that it has in the store.
    pub(super) existing: Option<(i64, String)>,
    /// Whether the configuration file says most of it.
    pub(super) from_file: bool,
    /// The name.
    pub(super) name: String,
    /// For people.
    pub(super) description: String,
    /// Comma-delimited.
    pub(super) proxy_hosts: String,
    /// Whether it is available for use.
    pub(super) enabled: bool,
    /// Whether its nodes may open streams to others.
    pub(super) may_open: bool,
    /// Which state of the record it is based on.
    pub(super) revision: i64,
}

/// The page of the form.
pub(super) fn form(frame: &Frame, form: &Form, faults: &[Wrong]) -> Markup {
    let (title, action, back) = match &form.existing {
        None => ("Add a worker".to_owned(), "/workers/new".to_owned(), "/workers".to_owned()),
        Some((id, name)) => (format!("Edit {name}"), format!("/workers/{id}/edit"), format!("/workers/{id}")),
    };
    page(
        frame,
        Body {
            title: &title,
            room: Some(Room::Workers),
            live: None,
            main: html! {
                div.narrow {
                    p.crumb { a href=(back) { (icon(Icon::Back)) @if form.existing.is_some() { "Back to the worker" } @else { "Distributed Workers" } } }
                    div.head { h1 { (title) } }
                    (wrongs("The worker was not saved", faults))
                    @if faults.iter().any(|wrong| wrong.field.is_empty()) {
                        p.again { a href=(action) { "Load it again, without what is typed here" } }
                    }
                    @if form.from_file {
                        (note(Tone::Info, html! { "The appliance's configuration file has this worker, under "
                            code { "[[appliance.groups]]" } ": its name and its proxy hosts are changed there." }))
                    }
                    form.form.card.card-pad method="post" action=(action) novalidate {
                        (csrf_field(&frame.csrf))
                        input type="hidden" name="revision" value=(form.revision) {}
                        (fields(form, faults))
                        div.form-end {
                            button.button.main { "Save changes" }
                            a.button href=(back) { "Cancel" }
                        }
                    }
                }
            },
        },
    )
}

fn fields(form: &Form, wrongs: &[Wrong]) -> Markup {
    let name = Field {
        name: "name",
        label: "Name",
        optional: false,
        help: html! { "What the worker is called here, in events and on the command line: lower-case letters, digits and "
        "hyphens. Its site is a good name." },
        wrongs,
    };
    let description = Field {
        name: "description",
        label: "Description",
        optional: true,
        help: html! { "For people: where it runs, who looks after it." },
        wrongs,
    };
    let hosts = Field {
        name: "proxy_hosts",
        label: "Proxy hosts",
        optional: true,
        help: html! {
            p {
                "A comma-delimited list. Every connection of this host to one of them goes through the worker. List each "
                "vCenter, and all Xen and PowerVC hosts; the API of other clouds is added by choosing this worker in the cloud. "
                "Write each as the cloud's URL has it: by name where the URL has a name, by address where it has an address."
            }
            p {
            "Names, " code { "*.suffix" } ", addresses and networks, each with ports where not all are meant: "
            code { "vcenter.corp.example:443" } ", " code { "10.20.0.0/16" } ", " code { "[2001:db8::/32]:443" } "."
            }
        },
        wrongs,
    };
    let focus = wrongs.is_empty() && form.existing.is_none();
    html! {
        (name.input(&form.name, "text", Input { required: true, most: Some(63), example: Some("berlin-dc1"), focus, fixed: form.from_file, ..Input::default() }))
        (description.input(&form.description, "text", Input::default()))
        (hosts.around(html! {
            textarea #proxy_hosts name="proxy_hosts" rows="4" readonly[form.from_file] spellcheck="false" autocapitalize="none"
                autocomplete="off" placeholder="vcenter.corp.example:443, *.lab.example, 10.20.0.0/16"
                aria-describedby=(hosts.described_by()) aria-invalid=[hosts.invalid()] { "\n" (form.proxy_hosts) }
        }))
        div.check {
            input #enabled name="enabled" type="checkbox" value="yes" checked[form.enabled] aria-describedby="enabled-help" {}
            label for="enabled" { "Enabled" }
            p.help #enabled-help { "The worker is available for use. Disabled, its key is refused, its nodes are cut off, and "
                "its proxy hosts are not captured." }
        }
        @if !form.from_file { div.check {
            input #may_open name="may_open" type="checkbox" value="yes" checked[form.may_open] aria-describedby="may_open-help" {}
            label for="may_open" { "May open connections to other workers" }
            p.help #may_open-help { "For a site whose own software manages other sites. Left off, a worker that was taken over "
                "reaches nothing but its own." }
        } }
    }
}

/// A key that was just made, and what to do with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NewKey {
    /// The worker's number.
    pub(super) id: i64,
    /// Its name.
    pub(super) name: String,
    /// The key.
    pub(super) key: Key,
    /// Where workers reach this appliance, as the browser did.
    pub(super) appliance_url: String,
    /// Whether it replaces another, and for how long that one works too.
    pub(super) replaces: Option<String>,
    /// What the administrator should know of the save.
    pub(super) warnings: Vec<String>,
}

impl NewKey {
    /// The worker's whole configuration.
    fn configuration(&self) -> String {
        let plaintext =
            if self.appliance_url.starts_with("http:") { "insecure_plaintext = true\n" } else { "" };
        let key = self.key.reveal();
        format!("appliance_url = \"{}\"\nworker_key = \"{key}\"\n{plaintext}", self.appliance_url)
    }
}

/// The page that shows a key.
pub(super) fn key(frame: &Frame, new: &NewKey) -> Markup {
    let title = match new.replaces {
        None => format!("{} is added", new.name),
        Some(_) => format!("{} has a new key", new.name),
    };
    page(
        frame,
        Body {
            title: &title,
            room: Some(Room::Workers),
            live: None,
            main: html! {
                div.narrow {
                    div.head { h1 { (title) } }
                    @if !new.warnings.is_empty() {
                        (note(Tone::Warn, html! {
                            h2 { "Saved, but look at this" }
                            ul { @for warning in &new.warnings { li { (warning) } } }
                        }))
                    }
                    (note(Tone::Info, html! {
                        strong { "This is the only time that the key is shown." }
                        " The appliance keeps only a hash of it. Who loses the key makes another."
                    }))
                    section.card {
                        div.card-head { h2 { "Worker key" } }
                        div.card-body.form {
                            (copy("worker-key", "the key", new.key.reveal()))
                            @if let Some(grace) = &new.replaces { p { (grace) } }
                        }
                    }
                    section.card {
                        div.card-head { h2 { "What to do at the site" } }
                        div.card-body.form {
                            p { "Put this into " code { "/etc/dworker/dworker.toml" } " of the worker's host, readable by root only, "
                                "and start " code { "dworker run --config /etc/dworker/dworker.toml" } ":" }
                            (copy("worker-configuration", "the configuration", &new.configuration()))
                            p.help { "Where no public authority signed this appliance's certificate, add "
                                code { "ca_file = \"/etc/dworker/ca.pem\"" } ". A second node for failover takes the same key." }
                        }
                    }
                    div.actions.after {
                        a.button.main href={ "/workers/" (new.id) } { "I have copied the key: show the worker" }
                    }
                }
            },
        },
    )
}
