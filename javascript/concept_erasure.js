// Gives each job a task id, so that the host's own progress bar, its time left and its live preview show it.

function concept_erasure_task(container, values) {
    const id = randomId();
    const place = gradioApp().getElementById(container);
    requestProgress(id, place, place, function() {}, function() {});
    const sent = Array.from(values);
    sent[0] = id;
    return sent;
}

function concept_erasure_submit() {
    return concept_erasure_task('concept_erasure_progress', arguments);
}

function concept_erasure_submit_purify() {
    return concept_erasure_task('concept_erasure_purify_progress', arguments);
}
