// Repeats a request as it is, with its transaction ID or its since token, until there is a whole answer that says more than that the
// server is in trouble: the library gives some requests up sooner than a server starts.
import { setTimeout as sleep } from "node:timers/promises";

const pause = 50; // ms, between two tries

export class Transport {
    #ended = false;
    #poll; // aborts the /sync that is under way
    #settled; // is called when the client asks for the next /sync

    /** Takes the place of the library's fetch. */
    fetch = async (url, options = {}) => {
        const isSync = new URL(url).pathname.endsWith("/sync");
        if (isSync) {
            this.#poll = new AbortController();
            const signals = [this.#poll.signal, options.signal].filter(Boolean);
            options = { ...options, signal: AbortSignal.any(signals) };
        }
        for (;;) {
            if (isSync && this.#ended) {
                this.#settled?.();
                return await new Promise(() => {});
            }
            try {
                const response = await fetch(url, options);
                const body = await response.arrayBuffer();
                if (response.status < 500) {
                    return new Response(body, { status: response.status, headers: response.headers });
                }
            } catch (error) {
                if (options.signal?.aborted && !(isSync && this.#ended)) {
                    throw error;
                }
            }
            await sleep(pause);
        }
    };

    /** Ends the /syncs, and returns when the client has done with the last answer. */
    async endSyncs() {
        const settled = new Promise((resolve) => (this.#settled = resolve));
        this.#ended = true;
        this.#poll?.abort();
        await settled;
    }
}
