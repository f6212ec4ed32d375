// Waits for conditions, under a deadline that only a fault reaches.
import { setTimeout as sleep } from "node:timers/promises";

const deadline = 60_000; // ms: as long as a server may take to send again what another one has not taken

/** Waits until a condition is met. What the condition saw is for the failure. */
export async function until(condition, saw) {
    for (const end = Date.now() + deadline; !(await condition()); await sleep(20)) {
        if (Date.now() > end) {
            throw new Error(saw());
        }
    }
}

/** Waits for a promise. */
export function within(promise, saw) {
    let timer;
    const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error(saw())), deadline)));
    return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}
