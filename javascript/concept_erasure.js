// Gives each job a task id, so that the host's own progress bar, its time left and its live preview show it.

function concept_erasure_task(container, values, onProgress, preview) {
    const id = randomId();
    const element = name => name && gradioApp().getElementById(name);
    requestProgress(id, element(container), element(preview), function() {}, onProgress || function() {});
    const sent = Array.from(values);
    sent[0] = id;
    return sent;
}

function concept_erasure_submit() {
    return concept_erasure_task('concept_erasure_progress', arguments, null, 'concept_erasure_live');
}

function concept_erasure_submit_purify() {
    return concept_erasure_task('concept_erasure_purify_progress', arguments);
}

function concept_erasure_submit_report() {
    return concept_erasure_task('concept_erasure_report_progress', arguments);
}

// While it searches, the table shows the candidates so far.
function concept_erasure_submit_explore() {
    let shown = Date.now();
    return concept_erasure_task('concept_erasure_explore_progress', arguments, function(answer) {
        if (answer.active && Date.now() - shown > 3000) {
            shown = Date.now();
            gradioApp().getElementById('concept_erasure_explore_live').click();
        }
    });
}

// The panels' lists have events of their own; a file that was just made or renamed is in them at once.
function concept_erasure_refresh_panels() {
    for (const tab of ['txt2img', 'img2img']) {
        const button = gradioApp().getElementById('concept_erasure_refresh_' + tab);
        if (button) button.click();
    }
    return [];
}

function concept_erasure_to_erase_form() {
    const tab = gradioApp().querySelector('#concept_erasure_tabs .tab-nav button');
    if (arguments[0].trim() && tab) tab.click();
    return Array.from(arguments);
}

// A page follows the browser's theme; here it follows the web UI's, which may be another.
function concept_erasure_follow_theme() {
    const dark = document.body.classList.contains('dark');
    const asked = '(prefers-color-scheme: dark)';
    for (const frame of gradioApp().querySelectorAll('iframe.concept-erasure-page:not([data-themed])')) {
        frame.dataset.themed = dark ? 'dark' : 'light';
        if (matchMedia(asked).matches === dark) continue;
        const style = '<style>:root { color-scheme: ' + frame.dataset.themed + ' !important }</style></head>';
        // In a frame of its own: one whose page is changed while it loads stays blank in Chromium.
        const other = frame.cloneNode();
        other.srcdoc = frame.srcdoc.split(asked).join(dark ? 'all' : 'not all').replace('</head>', style);
        frame.replaceWith(other);
    }
}
onUiUpdate(concept_erasure_follow_theme);

// Words of the field that came from the map; its other lines somebody typed, and they stay.
let concept_erasure_from_map = new Set();

// The map stands in a frame of its own; what is selected there comes as a message, and only from there is it taken.
window.addEventListener('message', function(event) {
    const frame = gradioApp().querySelector('#concept_erasure_map iframe');
    const words = event.data && event.data.conceptErasureSelection;
    if (!frame || event.source !== frame.contentWindow || !Array.isArray(words)) return;
    const field = gradioApp().querySelector('#concept_erasure_selected textarea');
    const chosen = words.map(word => String(word).split(/\s+/).join(' ').trim()).filter(Boolean);
    const lines = field.value.split('\n').map(line => line.trim()).filter(Boolean);
    const typed = lines.filter(line => !concept_erasure_from_map.has(line));
    concept_erasure_from_map = new Set(chosen);
    field.value = [...new Set([...typed, ...chosen])].join('\n');
    updateInput(field);
});
