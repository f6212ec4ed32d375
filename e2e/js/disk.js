// A device keeps its keys and its place in /sync on a disk of its own, and finds them there when it is started again, as a browser does.
import "fake-indexeddb/auto";
import { IDBFactory } from "fake-indexeddb";
import { IndexedDBStore } from "matrix-js-sdk";

export class Disk {
    #databases = new IDBFactory();

    /** The place in /sync, the rooms, and what is still to be sent to devices. */
    store() {
        return new IndexedDBStore({ indexedDB: this.#databases, dbName: "sync" });
    }

    /** Lets a client open its keys. The library finds the databases by a global name, so that one device after the other does this. */
    openKeys(client) {
        return (opening = opening.catch(() => {}).then(async () => {
            globalThis.indexedDB = this.#databases;
            await client.initRustCrypto();
        }));
    }
}

let opening = Promise.resolve();
