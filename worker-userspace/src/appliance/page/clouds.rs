//! Clouds: the list, the form, the question before a removal.

use maud::{Markup, html};

use super::layout::{Body, Frame, Room, csrf_field, page};
use super::parts::{Field, Icon, Input, Wrong, empty, icon, wrongs};
use super::words;
use super::workers::{Question, State, confirm, search};
use crate::appliance::records::CloudType;

/// What people call a type.
pub(super) fn title(kind: CloudType) -> &'static str {
    match kind {
        CloudType::Vmware => "VMware vCenter",
        CloudType::VmwareCloudAws => "VMware Cloud on AWS",
        CloudType::Nutanix => "Nutanix",
        CloudType::Openstack => "OpenStack",
        CloudType::Xenserver => "XenServer",
        CloudType::Macstadium => "MacStadium",
    }
}

/// The worker of a cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Carrier {
    /// The store's number.
    pub(super) id: i64,
    /// Its name.
    pub(super) name: String,
    /// How it is.
    pub(super) state: State,
}

/// A cloud's row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    /// The store's number.
    pub(super) id: i64,
    /// Its name.
    pub(super) name: String,
    /// What it is.
    pub(super) kind: CloudType,
    /// Where its API is.
    pub(super) api_url: String,
    /// The proxy host that it adds to its worker.
    pub(super) proxy_host: String,
    /// Who carries it.
    pub(super) worker: Option<Carrier>,
}

/// A page of the list.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct List {
    /// What was searched for.
    pub(super) query: String,
    /// How many there are.
    pub(super) all: usize,
    /// How many were found.
    pub(super) found: usize,
    /// From 0.
    pub(super) page: usize,
    /// Rows of a full page.
    pub(super) size: usize,
    /// The rows.
    pub(super) rows: Vec<Row>,
}

/// The whole page.
pub(super) fn list(frame: &Frame, list: &List) -> Markup {
    let live = format!("/live/clouds{}", place(&list.query, list.page));
    page(
        frame,
        Body {
            title: "Clouds",
            room: Some(Room::Clouds),
            live: Some(&live),
            main: html! {
                div.head {
                    div {
                        h1 { "Clouds" }
                        p { "Managed endpoints. A cloud with a worker is reached through it: the host and port of its API URL "
                            "become one of the worker's proxy hosts." }
                    }
                    div.actions { a.button.main href="/clouds/new" { (icon(Icon::Plus)) "Add a cloud" } }
                }
                @if list.all > 0 {
                    form.tools role="search" method="get" action="/clouds" data-filter {
                        (search("Search clouds", &list.query, "Name or URL"))
                        button.button.unscripted { "Search" }
                    }
                }
                (live_list(list))
            },
        },
    )
}

/// What of the page is replaced while one looks.
pub(super) fn live_list(list: &List) -> Markup {
    html! {
        div #live {
            section.card aria-label="Clouds" {
                @if list.all == 0 {
                    (empty(Icon::Clouds, "No cloud yet", html! {
                        p { "Add the vCenters and other clouds that workers shall reach. With a worker chosen, "
                            "an unchanged SDK on this host connects to the cloud's URL and is there." }
                        div.actions { a.button.main href="/clouds/new" { (icon(Icon::Plus)) "Add the first cloud" } }
                    }))
                } @else if list.rows.is_empty() {
                    (empty(Icon::Search, "Nothing found", html! {
                        p #count { "No cloud has “" (list.query) "” in its name or URL." }
                        div.actions { a.button href="/clouds" { "Show all clouds" } }
                    }))
                } @else { div.wide { (table(&list.rows)) } (pages(list)) }
            }
        }
    }
}

fn table(rows: &[Row]) -> Markup {
    html! {
        table.list.cards {
            caption { span.unseen { "Clouds" } }
            thead {
                tr {
                    th scope="col" { "Cloud" } th scope="col" { "API URL" } th scope="col" { "Worker" }
                    th scope="col" { span.unseen { "Actions" } }
                }
            }
            tbody {
                @for row in rows {
                    tr id={ "cloud-" (row.id) } {
                        td.lead {
                            a href={ "/clouds/" (row.id) "/edit" } { (row.name) }
                            span.under { (title(row.kind)) }
                        }
                        td.high.break.room data-label="API URL" {
                            (row.api_url)
                            @if row.worker.is_some() { span.under { "carried as " span.mono { (row.proxy_host) } } }
                        }
                        td.firm data-label="Worker" {
                            @if let Some(worker) = &row.worker {
                                span.actions { a href={ "/workers/" (worker.id) } { (worker.name) } (worker.state.badge()) }
                            } @else { span.muted { "none: reached directly" } }
                        }
                        td.right {
                            span.actions.end {
                                a.button.small href={ "/clouds/" (row.id) "/edit" } { "Edit" span.unseen { " " (row.name) } }
                                a.button.small.risky href={ "/clouds/" (row.id) "/remove" } data-dialog { "Remove" span.unseen { " " (row.name) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn pages(list: &List) -> Markup {
    let first = list.page * list.size;
    let last = first + list.rows.len();
    let text = match list.found {
        n if n == list.rows.len() => words::count(n, "cloud", "clouds"),
        n => format!("{} to {last} of {n} clouds", first + 1),
    };
    let newer = (list.page > 0).then(|| format!("/clouds{}", place(&list.query, list.page - 1)));
    let older = (last < list.found).then(|| format!("/clouds{}", place(&list.query, list.page + 1)));
    html! {
        div #count { (super::parts::pager(&text, newer.as_deref(), older.as_deref(), ("Previous", "Next"))) }
    }
}

fn place(query: &str, page: usize) -> String {
    let page = (page > 0).then(|| page.to_string());
    super::query(&[("q", query), ("page", page.as_deref().unwrap_or_default())])
}

/// What the form has, as it was typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Form {
    /// Where it is not new: the store's number, and the name that it has in the store.
    pub(super) existing: Option<(i64, String)>,
    /// The name.
    pub(super) name: String,
    /// The type's word.
    pub(super) kind: String,
    /// Where its API is.
    pub(super) api_url: String,
    /// The worker's number, or nothing.
    pub(super) worker: String,
    /// Which state of the record it is based on.
    pub(super) revision: i64,
}

/// The page of the form; `workers` are the choices: number and name.
pub(super) fn form(frame: &Frame, form: &Form, workers: &[(i64, String)], faults: &[Wrong]) -> Markup {
    let (title, action) = match &form.existing {
        None => ("Add a cloud".to_owned(), "/clouds/new".to_owned()),
        Some((id, name)) => (format!("Edit {name}"), format!("/clouds/{id}/edit")),
    };
    page(
        frame,
        Body {
            title: &title,
            room: Some(Room::Clouds),
            live: None,
            main: html! {
                div.narrow {
                    p.crumb { a href="/clouds" { (icon(Icon::Back)) "Clouds" } }
                    div.head { h1 { (title) } }
                    (wrongs("The cloud was not saved", faults))
                    @if faults.iter().any(|wrong| wrong.field.is_empty()) {
                        p.again { a href=(action) { "Load it again, without what is typed here" } }
                    }
                    form.form.card.card-pad method="post" action=(action) novalidate {
                        (csrf_field(&frame.csrf))
                        input type="hidden" name="revision" value=(form.revision) {}
                        (fields(form, workers, faults))
                        div.form-end {
                            button.button.main { "Save changes" }
                            a.button href="/clouds" { "Cancel" }
                        }
                    }
                }
            },
        },
    )
}

fn fields(form: &Form, workers: &[(i64, String)], wrongs: &[Wrong]) -> Markup {
    let field = |name, label, optional, help| Field { name, label, optional, help, wrongs };
    let name = field("name", "Name", false, html! { "What the cloud is called here." });
    let kind = field("kind", "Type", false, html! { "What stands behind the URL." });
    let url = field(
        "api_url",
        "API URL",
        false,
        html! { "As the software that manages the cloud has it, name or address alike: connections are captured by what "
        "is written here." },
    );
    let worker = field(
        "worker",
        "Worker",
        true,
        html! { "Who carries connections to the URL. Without one the cloud is reached directly." },
    );
    let focus = wrongs.is_empty() && form.existing.is_none();
    html! {
        (name.input(&form.name, "text", Input { required: true, focus, ..Input::default() }))
        (kind.around(html! {
            select #kind name="kind" aria-describedby=(kind.described_by()) aria-invalid=[kind.invalid()] {
                @for kind in CloudType::ALL {
                    option value=(kind.word()) selected[kind.word() == form.kind] { (title(kind)) }
                }
            }
        }))
        (url.input(&form.api_url, "url", Input { required: true, example: Some("https://vcenter.corp.example"), ..Input::default() }))
        (worker.around(html! {
            select #worker name="worker" aria-describedby=(worker.described_by()) aria-invalid=[worker.invalid()] {
                option value="" { "None" }
                @for (id, name) in workers { option value=(id) selected[id.to_string() == form.worker] { (name) } }
            }
        }))
    }
}

/// Asks whether to remove a cloud.
pub(super) fn remove(frame: &Frame, id: i64, name: &str, worker: Option<&str>) -> Markup {
    let body = html! {
        p {
            "Its record is gone for good."
            @if let Some(worker) = worker {
                " New connections to it go through " strong { (worker) } " no more, unless one of the worker's own proxy hosts "
                "names it. Open ones are left alone."
            }
        }
    };
    let (title, action) = (format!("Remove {name}?"), format!("/clouds/{id}/remove"));
    confirm(
        frame,
        &Question {
            room: Room::Clouds,
            title: &title,
            body,
            action: &action,
            word: "Remove the cloud",
            danger: true,
            back: "/clouds",
        },
    )
}
